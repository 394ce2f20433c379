"""A step that AOTInductor has made into a shared library, called so that other threads go on meanwhile.

torch's own binding holds the interpreter's lock for a whole step: nothing else of this process, its event loop
included, would move while the model computes. The library's C interface is torch's aoti_runtime/interface.h.
"""

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

_aoti: Any = torch._C._aoti  # pyright: ignore[reportAttributeAccessIssue,reportPrivateUsage,reportUnknownMemberType]
_capsule_pointer: Any = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_new_capsule: Any = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class _Constant(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("handle", ctypes.c_void_p)]


class Library:
    """One compiled function of tensors over a model's weights, which it only borrows; they must outlive it."""

    def __init__(self, path: Path, weights: Mapping[str, torch.Tensor]) -> None:
        self._library = ctypes.CDLL(str(path))
        self._container = ctypes.c_void_p()
        self._call("CreateWithDevice", ctypes.byref(self._container), ctypes.c_size_t(1), b"cpu", None)
        outputs = ctypes.c_size_t()
        self._call("GetNumOutputs", self._container, ctypes.byref(outputs))
        self._outputs = outputs.value
        self._run = self._function("Run")
        self._borrow(weights)

    def _function(self, name: str) -> Callable[..., int]:
        function = self._library[f"AOTInductorModelContainer{name}"]
        function.restype = ctypes.c_int32
        return function

    def _call(self, name: str, *arguments: Any) -> None:
        if self._function(name)(*arguments):
            raise RuntimeError(f"the compiled step's {name} failed")

    def _borrow(self, weights: Mapping[str, torch.Tensor]) -> None:
        count, name = ctypes.c_size_t(), ctypes.c_char_p()
        self._call("GetNumConstants", self._container, ctypes.byref(count))
        names: list[tuple[bytes, str]] = []
        for place in range(count.value):
            place = ctypes.c_size_t(place)
            self._call("GetConstantName", self._container, place, ctypes.byref(name))
            inside = name.value or b""
            self._call("GetConstantOriginalFQN", self._container, place, ctypes.byref(name))
            names.append((inside, (name.value or b"").decode()))
        handles = _handles([weights[outside] for _, outside in names])
        self._constants = (_Constant * len(names))(
            *(_Constant(inside, handle) for (inside, _), handle in zip(names, handles, strict=True))
        )
        self._call("UpdateUserManagedConstantBufferPairs", self._container, self._constants,
                   ctypes.c_size_t(len(names)), ctypes.c_bool(False), ctypes.c_bool(True))  # fmt: skip

    def __call__(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """The function's results; without the interpreter's lock."""
        taken = (ctypes.c_void_p * len(inputs))(*_handles(inputs))
        given = (ctypes.c_void_p * self._outputs)()
        if self._run(
            self._container, taken, ctypes.c_size_t(len(inputs)), given, ctypes.c_size_t(self._outputs), None, None
        ):
            raise RuntimeError("the compiled step failed")
        capsules = [_new_capsule(handle, None, None) for handle in given]
        return _aoti.alloc_tensors_by_stealing_from_void_ptrs(capsules)


def _handles(tensors: list[torch.Tensor]) -> list[int]:
    """References to tensors as the library takes them; whoever gets one frees it."""
    capsules = _aoti.unsafe_alloc_void_ptrs_from_tensors(tensors)
    return [_capsule_pointer(capsule, None) for capsule in capsules]
