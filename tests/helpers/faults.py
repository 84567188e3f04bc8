"""Faults that the stand-ins of CUDA and TensorRT answer with, when they are told to."""


def due_fault(faults, name):
    """The fault that a call meets, None if there is none: which lets as many calls pass as it is to, and counts itself.

    Args:
        faults: lists of a call's name, what it answers with, calls to let pass first, calls to fail then, and whatever
            else belongs to it
        name: of the call
    """
    for fault in faults:
        if fault[0] == name and fault[3] > 0:
            if fault[2] > 0:
                fault[2] -= 1
                continue
            fault[3] -= 1
            return fault
    return None
