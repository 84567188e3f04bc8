from holocron.models.detection.yolo import YOLOv1, yolov1
from holocron.models.detection.yolov2 import YOLOv2, yolov2

__all__ = ["YOLOv1", "YOLOv2", "yolov1", "yolov2"]
