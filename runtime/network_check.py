"""Whether a network that was opened is the one that its manifest describes."""

from __future__ import annotations

from collections.abc import Sequence

from .backends.base import Session
from .errors import BundleError
from .manifest import Manifest, TensorSpec


def check_network(manifest: Manifest, session: Session) -> int | None:
    """Check that inputs and outputs are of the names, element types and shapes that the manifest says.

    Args:
        manifest: of the model
        session: what was opened

    Returns:
        the network's batch if that is fixed, else None

    Raises:
        BundleError: if it is another network
    """
    if manifest.frame is None:
        _check_image_input(manifest, session)
    else:
        _check_frame_inputs(manifest, session)
    outputs = {spec.name: spec for spec in session.outputs}
    if len(outputs) != len(manifest.outputs) or not all(spec.name in outputs for spec in manifest.outputs):
        raise BundleError(
            f"{manifest.name}: the manifest says the outputs {_names(manifest.outputs)}, the network has "
            f"{_names(session.outputs)}; export the model again"
        )
    for spec in manifest.outputs:
        _check_tensor(manifest, spec, outputs[spec.name])
        if not _fits(spec.shape[1:], outputs[spec.name].shape[1:]):
            raise BundleError(
                f"{manifest.name}: the manifest says {spec.name!r} of {spec.shape}, the network has "
                f"{outputs[spec.name].shape}; export the model again"
            )
    batch = session.inputs[0].shape[0]
    return batch if isinstance(batch, int) else None


def _check_image_input(manifest: Manifest, session: Session) -> None:
    if len(manifest.inputs) != 1 or len(session.inputs) != 1:
        raise BundleError(f"{manifest.name}: a network of images has one input; export the model again")
    _check_tensor(manifest, manifest.inputs[0], session.inputs[0])
    shape, fed = session.inputs[0].shape, (3, *manifest.preprocessing.size)
    if len(shape) != 4 or not _fits(fed, shape[1:]):
        raise BundleError(
            f"{manifest.name}: the network takes {shape}, preprocessing gives {fed}; export the model again"
        )


def _check_frame_inputs(manifest: Manifest, session: Session) -> None:
    found = {spec.name: spec for spec in session.inputs}
    for spec in manifest.inputs:
        if spec.name not in found or len(found) != len(manifest.inputs):
            raise BundleError(
                f"{manifest.name}: the manifest says the inputs {_names(manifest.inputs)}, the network has "
                f"{_names(session.inputs)}; export the model again"
            )
        _check_tensor(manifest, spec, found[spec.name])
        if not _fits(spec.shape[1:], found[spec.name].shape[1:]):
            raise BundleError(
                f"{manifest.name}: the manifest says {spec.name!r} of {spec.shape}, the network has "
                f"{found[spec.name].shape}; export the model again"
            )


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(repr(spec.name) for spec in specs)


def _check_tensor(manifest: Manifest, said: TensorSpec, found: TensorSpec) -> None:
    if (said.name, said.dtype) != (found.name, found.dtype):
        raise BundleError(
            f"{manifest.name}: the manifest says {said.name!r} of {said.dtype}, the network has {found.name!r} of "
            f"{found.dtype}; export the model again"
        )


def _fits(said: Sequence[int | str], found: Sequence[int | str]) -> bool:
    """Whether two shapes can be of one tensor: of equal length, and equal wherever both are numbers."""
    return len(said) == len(found) and all(
        not isinstance(a, int) or not isinstance(b, int) or a == b for a, b in zip(said, found, strict=True)
    )
