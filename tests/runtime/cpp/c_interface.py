"""The C interface of the C++ runtime through ctypes, as any other language would bind to it."""

import ctypes
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_ssize_t, c_void_p

import numpy as np

RGB, BGR, RGBA, BGRA, GRAY, NV12 = range(6)
STATUSES = ("ok", "bundle", "backend", "image", "input", "argument", "memory", "internal")
TASKS = ("classification", "detection", "segmentation")
DTYPES = ("float32", "float16", "float64", "uint8", "int8", "int32", "int64", "bool")


class Options(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("backend", c_char_p),
        ("precision", c_char_p),
        ("device", c_char_p),
        ("threads", c_int32),
        ("concurrency", c_int32),
        ("contexts", c_int32),
        ("cuda_graphs", c_int32),
        ("zero_copy", c_int32),
    )


class Frame(ctypes.Structure):
    _fields_ = (
        ("pixels", c_void_p),
        ("width", c_int32),
        ("height", c_int32),
        ("stride", c_ssize_t),
        ("format", c_int32),
        ("region", c_int32 * 4),
        ("chroma", c_void_p),
        ("chroma_stride", c_ssize_t),
        ("memory", c_int32),
    )


class Tensor(ctypes.Structure):
    _fields_ = (
        ("name", c_char_p),
        ("type", c_int32),
        ("memory", c_int32),
        ("rank", c_size_t),
        ("shape", POINTER(c_int64)),
        ("data", c_void_p),
    )


class Class(ctypes.Structure):
    _fields_ = (("label", c_char_p), ("index", c_int32), ("score", c_double))


class Detection(ctypes.Structure):
    _fields_ = (("box", c_float * 4), ("score", c_float), ("index", c_int32), ("label", c_char_p))


class CError(Exception):
    """What a call said that failed, and of which kind that is."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = STATUSES[status]


class CInterface:
    """The functions of the library.

    Args:
        path: of the shared library
    """

    Error = CError

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        strings = ("name", "precision", "backend", "device", "artefact", "label")
        for name in ("last_error", "version", *(f"model_{string}" for string in strings)):
            getattr(self.library, f"holocron_{name}").restype = c_char_p
        for name in ("results_count", "tensors_count", "model_label_count", "model_input_count"):
            getattr(self.library, f"holocron_{name}").restype = c_size_t

    def call(self, name, *arguments):
        """Call a function, and raise what it says went wrong."""
        status = getattr(self.library, f"holocron_{name}")(*arguments)
        if status:
            raise CError(status, self.library.holocron_last_error().decode())

    def load(self, path, precision=None, backend="openvino", threads=1, **others):
        """Open a bundle."""
        options = Options()
        self.call("load_options_init", byref(options))
        for key, value in {"precision": precision, "backend": backend, "threads": threads, **others}.items():
            setattr(options, key, value.encode() if isinstance(value, str) else value)
        handle = c_void_p()
        self.call("load", str(path).encode(), byref(options), byref(handle))
        return CModel(self, handle)


class CModel:
    """A model, whose answers are plain Python values and numpy arrays."""

    def __init__(self, interface, handle):
        self._c = interface
        self.handle = handle

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._c.library.holocron_model_free(self.handle)

    def close(self):
        self._c.call("model_close", self.handle)

    def text(self, what):
        """One of the model's strings."""
        return getattr(self._c.library, f"holocron_model_{what}")(self.handle).decode()

    def classify(self, images):
        """Of each image the classes and their scores, likeliest first, and the logits."""
        return self._answers("classify", images, self._classification)

    def detect(self, images):
        """Of each image the boxes, scores and labels, and the status."""
        return self._answers("detect", images, self._detections)

    def segment(self, images):
        """Of each image the class map as the network gives it, and that of its pixels."""
        return self._answers("segment", images, self._segmentation)

    def run_images(self, images):
        """The network's outputs by name."""
        return self._tensors("run_frames", *frames_of(images))

    def feeds(self, images):
        """What the network is fed."""
        return self._tensors("feeds", *frames_of(images))

    def run(self, arrays):
        """The network's outputs for tensors."""
        tensors = (Tensor * len(arrays))()
        kept = []
        for tensor, (name, array) in zip(tensors, arrays.items(), strict=True):
            contiguous = np.ascontiguousarray(array)
            shape = (c_int64 * contiguous.ndim)(*contiguous.shape)
            kept += [contiguous, shape]
            tensor.name, tensor.type = name.encode(), DTYPES.index(contiguous.dtype.name)
            tensor.rank, tensor.shape = contiguous.ndim, ctypes.cast(shape, POINTER(c_int64))
            tensor.data = contiguous.ctypes.data
        return self._tensors("run", tensors, c_size_t(len(arrays)))

    def _answers(self, name, images, read):
        results = c_void_p()
        self._c.call(name, self.handle, *frames_of(images), byref(results))
        try:
            count = self._c.library.holocron_results_count(results)
            return [read(results, c_size_t(i)) for i in range(count)]
        finally:
            self._c.library.holocron_results_free(results)

    def _classes(self, results, frame):
        count, found, classes = c_size_t(), Class(), []
        self._c.call("results_class_count", results, frame, byref(count))
        for rank in range(count.value):
            self._c.call("results_class", results, frame, c_size_t(rank), byref(found))
            classes.append((found.index, found.score, found.label.decode()))
        return classes

    def _classification(self, results, frame):
        logits, count = POINTER(c_float)(), c_size_t()
        self._c.call("results_logits", results, frame, byref(logits), byref(count))
        values = np.ctypeslib.as_array(logits, (count.value,)).copy() if count.value else None
        return self._classes(results, frame), values

    def _detections(self, results, frame):
        count, status, found, objects = c_size_t(), c_int32(), Detection(), []
        self._c.call("results_detection_count", results, frame, byref(count))
        self._c.call("results_detection_status", results, frame, byref(status))
        for i in range(count.value):
            self._c.call("results_detection", results, frame, c_size_t(i), byref(found))
            objects.append((tuple(found.box), found.score, found.index))
        return objects, status.value

    def _segmentation(self, results, frame):
        classes, height, width = POINTER(c_int32)(), c_size_t(), c_size_t()
        self._c.call("results_class_map", results, frame, byref(classes), byref(height), byref(width))
        cells = np.ctypeslib.as_array(classes, (height.value, width.value)).copy()
        self._c.call("results_pixel_classes", results, frame, None, c_size_t(0), byref(height), byref(width))
        pixels = np.empty((height.value, width.value), np.int32)
        self._c.call(
            "results_pixel_classes",
            results,
            frame,
            c_void_p(pixels.ctypes.data),
            c_size_t(pixels.size),
            byref(height),
            byref(width),
        )
        return cells, pixels, self._classes(results, frame)

    def _tensors(self, name, *arguments):
        tensors, each = c_void_p(), Tensor()
        self._c.call(name, self.handle, *arguments, byref(tensors))
        try:
            arrays = {}
            for i in range(self._c.library.holocron_tensors_count(tensors)):
                self._c.call("tensors_at", tensors, c_size_t(i), byref(each))
                shape = tuple(each.shape[d] for d in range(each.rank))
                dtype = np.dtype(DTYPES[each.type])
                size = int(np.prod(shape)) * dtype.itemsize
                data = ctypes.string_at(each.data, size) if size else b""
                arrays[each.name.decode()] = np.frombuffer(data, dtype).reshape(shape)
            return arrays
        finally:
            self._c.library.holocron_tensors_free(tensors)


def frame_of(array, layout=RGB, region=(0, 0, 0, 0)):
    """A frame of an array `(H, W, channels)` of uint8, whose rows may lie apart."""
    frame = Frame()
    frame.pixels, frame.format = array.ctypes.data, layout
    frame.height, frame.width = array.shape[:2]
    frame.stride = array.strides[0]
    frame.region = (c_int32 * 4)(*region)
    return frame


def frames_of(images):
    """Frames and how many there are, of arrays or of frames."""
    frames = (Frame * max(1, len(images)))()
    for i, image in enumerate(images):
        frames[i] = image if isinstance(image, Frame) else frame_of(image)
    return frames, c_size_t(len(images))
