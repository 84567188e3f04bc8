from holocron.models.detection.yolo import YOLOv1, yolov1
from holocron.models.detection.yolov2 import YOLOv2, yolov2
from holocron.models.detection.yolov4 import YOLOv4, yolov4

__all__ = ["YOLOv1", "YOLOv2", "YOLOv4", "yolov1", "yolov2", "yolov4"]
