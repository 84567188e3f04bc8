"""The stand-ins have nothing that the real libraries have not, and the backend asks for nothing else.

Checked against what is installed: `cuda.bindings`, `tensorrt_rtx`, TensorRT itself (`tensorrt`, or its bindings alone),
and the type stubs of TensorRT (`tensorrt-stubs`), each skipped where it is not.
"""

import ast
import enum
import importlib
import importlib.metadata
import inspect
import re
from pathlib import Path

import pytest

import runtime.backends
from runtime.backends.cuda import device_count
from runtime.backends.cuda_runtime import _LOST, CudaError, CudaRuntime
from runtime.errors import BackendError

SOURCES = Path(runtime.backends.__file__).parent
RTX_ONLY = {"CudaGraphStrategy", "ComputeCapability", "IRuntimeCache"}
"""Asked for only where `hasattr` or the library's name says that they are there."""
LIBRARIES = ["tensorrt_rtx", "tensorrt", "tensorrt_bindings"]


def real(name):
    """An installed library; type stubs leave folders that can be imported and hold nothing."""
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as e:
        pytest.skip(f"{name} is not installed: {e}")
    if not (hasattr(module, "ILogger") or name.startswith("cuda")):
        pytest.skip(f"{name} is not installed, its type stubs are")
    return module


def parameters(doc):
    """Names of the parameters of each overload that a binding's documentation has."""
    found = []
    for line in re.findall(r"^(?:\d+\. )?\w+\((.*)\)(?: ->.*)?$", doc or "", re.MULTILINE):
        depth, names, word = 0, [], ""
        for c in f"{line},":
            depth += (c in "[(") - (c in "])")
            if c == "," and depth == 0:
                names.append(word.split(":")[0].split("=")[0].strip())
                word = ""
            else:
                word += c
        found.append([n for n in names if n and n != "self" and not n.startswith("*")])
    return found


@pytest.fixture(scope="module")
def cuda_bindings():
    return real("cuda.bindings.runtime")


class TestCuda:
    def test_every_call_exists_with_the_same_parameters(self, fakes, cuda_bindings):
        fake = fakes[0]
        for name in fake.CALLS:
            function = getattr(cuda_bindings, name)
            ours = list(inspect.signature(getattr(fake.FakeCuda, name).__wrapped__).parameters)[1:]
            # A parameter is written as in C (size_t count), by its name alone, or with a type behind a colon.
            theirs = re.match(r"\w+\((.*)\)", function.__doc__).group(1)
            names = [part.split(":")[0].split()[-1] for part in theirs.split(",") if part.strip()]
            assert names == ours, name

    def test_every_constant_has_its_value(self, fakes, cuda_bindings):
        fake = fakes[0]
        for name, value in fake.CONSTANTS.items():
            assert getattr(cuda_bindings, name) == value, name
        for kind in fake.ENUMS:
            for member in kind:
                assert int(getattr(getattr(cuda_bindings, kind.__name__), member.name)) == int(member), member

    def test_all_that_the_backend_names_exists(self, cuda_bindings):
        source = (SOURCES / "cuda_runtime.py").read_text()
        named = set(re.findall(r'"(cuda[A-Z]\w+)"', source)) | set(re.findall(r"self\._api\.(\w+)", source))
        assert len(named) > 40
        kinds = ("cudaError_t", "cudaMemcpyKind")
        for name in named:
            assert hasattr(cuda_bindings, name) or any(hasattr(getattr(cuda_bindings, k), name) for k in kinds), name

    def test_the_errors_of_a_lost_device_exist(self, cuda_bindings):
        assert all(hasattr(cuda_bindings.cudaError_t, name) for name in _LOST)

    def test_the_stand_in_has_all_that_the_backend_calls(self, fakes):
        """So that no call goes unchecked: what it has exists in the real one, what it has not fails every test."""
        source = (SOURCES / "cuda_runtime.py").read_text()
        called = set(re.findall(r'_call\(\s*"(\w+)"', source)) | set(re.findall(r"self\._api\.(cuda\w+)\(", source))
        assert called <= set(fakes[0].CALLS)

    def test_real_calls_take_what_the_backend_gives_them(self, cuda_bindings):
        """Addresses as integers, streams as what made them or as integers: without a driver each says just that."""
        if device_count():
            pytest.skip("there is a driver, which would take these addresses for real ones")
        cuda, api = CudaRuntime(), cuda_bindings
        stream, graph = api.cudaStream_t(4096), api.cudaGraphExec_t(4096)
        for call in (
            lambda: cuda.free(4096),
            lambda: cuda.host_alloc(16, mapped=True),
            lambda: cuda.host_free(4096),
            lambda: cuda.device_pointer(4096),
            lambda: cuda.destroy_stream(stream),
            lambda: cuda.synchronize(stream),
            lambda: cuda.copy_to_device(4096, 8192, 16, stream),
            lambda: cuda.copy_to_host(4096, 8192, 16, stream),
            lambda: cuda.copy(4096, 8192, 16, stream),
            lambda: cuda.begin_capture(stream),
            lambda: cuda.end_capture(stream),
            lambda: cuda.launch(graph, stream),
            lambda: cuda.destroy_graph(graph),
            lambda: cuda._call("cudaEventRecord", api.cudaEvent_t(4096), 1),
            lambda: cuda._call("cudaStreamWaitEvent", stream, api.cudaEvent_t(4096), 0),
            lambda: cuda._call("cudaGraphInstantiate", api.cudaGraph_t(4096), 0),
        ):
            with pytest.raises(CudaError):
                call()
        cuda.abandon_capture(stream)
        assert int(stream) == 4096  # as execute_async_v3 wants it

    def test_a_real_call_without_a_driver_is_one_clear_error(self, cuda_bindings):
        if device_count():
            pytest.skip("there is a driver")
        cuda = CudaRuntime()
        for call in (
            lambda: cuda.malloc(16),
            lambda: cuda.host_alloc(16),
            cuda.create_stream,
            cuda.free_memory,
            lambda: cuda.shares_memory(0),
            lambda: cuda.device_of(4096),
        ):
            with pytest.raises(
                BackendError, match=r"^cuda\w+: .*(InsufficientDriver|NoDevice|libcuda|not found)"
            ) as caught:
                call()
            assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def stubs():
    """The type stubs: classes, with their members and how many parameters each method takes."""
    try:
        files = importlib.metadata.files("tensorrt-stubs")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(
            "tensorrt-stubs is not installed (pip install --no-deps tensorrt-stubs: it asks for a TensorRT of its own)"
        )
    (path,) = [f.locate() for f in files if str(f) == "tensorrt_bindings/tensorrt.pyi"]
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    while True:
        try:
            tree = ast.parse("\n".join(lines))
        except SyntaxError as e:  # the stubs of 10.13 have two methods that are no Python, and mypy refuses them for it
            line = lines[e.lineno - 1]
            assert line.lstrip().startswith("def ")
            lines[e.lineno - 1] = f"{line[: -len(line.lstrip())]}def unreadable(self):"
        else:
            return {node.name: members(node) for node in tree.body if isinstance(node, ast.ClassDef)}


@pytest.fixture(params=LIBRARIES)
def trt(request):
    return real(request.param)


class TestTensorRT:
    def test_the_stand_ins_have_nothing_else(self, fakes, trt):
        fake_cuda, fake_tensorrt = fakes
        library = "tensorrt_rtx" if trt.__name__ == "tensorrt_rtx" else "tensorrt"
        fake = fake_tensorrt.make_tensorrt(fake_cuda.FakeCuda(), library)
        checked = 0
        for name, ours in vars(fake).items():
            if not inspect.isclass(ours):
                continue
            theirs = getattr(trt, name)
            if issubclass(ours, enum.Enum):
                assert {m.name for m in ours} <= set(theirs.__members__), name
                continue
            public = [n for n in vars(ours) if not n.startswith("_")]
            for attribute in (*public, *fake_tensorrt.ATTRIBUTES.get(name, ())):
                assert hasattr(theirs, attribute), f"{name}.{attribute}"
                checked += 1
            for method in (n for n in public if inspect.isfunction(getattr(ours, n))):
                names = list(inspect.signature(getattr(ours, method)).parameters)[1:]
                overloads = parameters(getattr(theirs, method).__doc__)
                assert any(names == overload[: len(names)] for overload in overloads), f"{name}.{method}: {overloads}"
        assert checked > 30
        for name in ("Runtime", "Refitter", "OnnxParserRefitter", "ILogger"):  # those that the backend makes itself
            names = list(inspect.signature(getattr(fake, name).__init__).parameters)[1:]
            assert parameters(getattr(trt, name).__init__.__doc__) == [names], name

    def test_all_that_the_backend_names_exists(self, trt):
        named = set()
        for source in SOURCES.glob("*.py"):
            for node in ast.walk(ast.parse(source.read_text())):
                chain = attribute_chain(node)
                if chain[:1] == ["trt"] or chain[:2] == ["self", "_trt"]:
                    named.add(tuple(chain[1:] if chain[0] == "trt" else chain[2:]))
        named.discard(())
        assert len(named) > 20
        for chain in named:
            if chain[0] in RTX_ONLY and trt.__name__ != "tensorrt_rtx":
                continue
            found = trt
            for attribute in chain:
                assert hasattr(found, attribute), ".".join(chain)
                found = getattr(found, attribute)

    def test_only_tensorrt_rtx_has_what_is_only_asked_of_it(self, trt):
        for name in RTX_ONLY:
            assert hasattr(trt, name) == (trt.__name__ == "tensorrt_rtx"), name


def attribute_chain(node):
    """`["self", "_trt", "Runtime"]` of `self._trt.Runtime`; empty for what is no such chain."""
    chain = []
    while isinstance(node, ast.Attribute):
        chain.insert(0, node.attr)
        node = node.value
    return [node.id, *chain] if isinstance(node, ast.Name) else []


class TestStubs:
    """The type stubs of TensorRT 10, for what cannot be installed everywhere."""

    def test_the_stand_ins_have_nothing_else(self, fakes, stubs):
        fake_cuda, fake_tensorrt = fakes
        fake = fake_tensorrt.make_tensorrt(fake_cuda.FakeCuda())
        for name, ours in vars(fake).items():
            if not inspect.isclass(ours):
                continue
            if issubclass(ours, enum.Enum):
                assert {m.name for m in ours} <= set(stubs[name]), name
                continue
            for attribute in vars(ours):
                if attribute.startswith("_"):
                    continue
                theirs = stubs[name]
                assert attribute in theirs or attribute == "Severity", f"{name}.{attribute}"
                method = getattr(ours, attribute)
                if inspect.isfunction(method) and theirs[attribute]:
                    arguments = len(inspect.signature(method).parameters)
                    assert any(low <= arguments <= high for low, high in theirs[attribute]), f"{name}.{attribute}"
            for attribute in fake_tensorrt.ATTRIBUTES.get(name, ()):
                assert attribute in stubs[name], f"{name}.{attribute}"


def members(node):
    """The members of a class in a stub; of methods how many parameters each overload takes at least and at most."""
    found = {}
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            arguments = item.args.posonlyargs + item.args.args
            is_property = any(isinstance(d, ast.Name) and d.id == "property" for d in item.decorator_list)
            bounds = [] if is_property else [(len(arguments) - len(item.args.defaults), len(arguments))]
            found.setdefault(item.name, []).extend(bounds)
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            found.setdefault(item.target.id, [])
    return found
