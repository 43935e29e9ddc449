"""Builds a design with Verilator for cocotb, and runs a module of tests on it."""

import hashlib
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET

import cocotb
import cocotb_tools.config
from amaranth.back import verilog
from cocotb_tools.runner import get_runner

from hdl.synthesis import cache_root
from sim.verilate import verilator_environment

__all__ = ["run"]

WAVES = bool(os.environ.get("LUTRA_WAVES"))


def build(design, name):
    """Directory with the simulator of a design, built now if it is not in the cache."""
    text = verilog.convert(design, name=name, emit_src=False, strip_internal_attrs=True)
    libraries = cocotb_tools.config.libs_dir
    # Only the ports are public: the runner of cocotb makes everything so, which costs a multiple.
    translate = [
        "verilator", "--cc", "--exe", "-Mdir", "obj", "--top-module", name, "--prefix", "Vtop",
        "-o", name, "--vpi", "--public-depth", "1", "-O3", "--x-assign", "unique",
        "--x-initial", "unique", "-Wno-fatal", "-Wno-lint", "--timescale", "1ns/1ps",
        *(["--trace"] if WAVES else []), "-LDFLAGS",
        f"-Wl,-rpath,{libraries} -L{libraries} -lcocotbvpi_verilator",
        str(cocotb_tools.config.share_dir / "lib" / "verilator" / "verilator.cpp"), f"{name}.v"]
    compile_ = ["make", "-j2", "-C", "obj", "-f", "Vtop.mk", "OPT_FAST=-O1", "OPT_SLOW=-O0",
                f"VM_TRACE={int(WAVES)}"]
    key = hashlib.sha256(repr((text, translate, compile_, cocotb.__version__,
                               sys.version)).encode()).hexdigest()[:20]
    home = cache_root() / "cocotb" / key
    if home.exists():
        return home
    work = home.with_name(f"{key}.{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / f"{name}.v").write_text(text)
    for command in (translate, compile_):
        done = subprocess.run(command, cwd=work, env=verilator_environment(), capture_output=True,
                              text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (work / "bin").mkdir()
    shutil.move(work / "obj" / name, work / "bin" / name)
    shutil.rmtree(work / "obj")
    try:
        work.rename(home)
    except OSError:         # another process was faster
        shutil.rmtree(work, ignore_errors=True)
    return home


def run(design, name, module, tmp_path, **environment):
    """Run the cocotb tests of a module on a design; an assertion names those that fail.

    Returns
    -------
    set of str
        Names of the tests that ran.
    """
    results = tmp_path / "results.xml"
    log = tmp_path / "log.txt"
    try:
        get_runner("verilator").test(
            test_module=module, hdl_toplevel=name, hdl_toplevel_lang="verilog", waves=WAVES,
            build_dir=build(design, name) / "bin", test_dir=tmp_path, results_xml=str(results),
            log_file=log, extra_env=environment)
    except SystemExit:      # what the runner makes of failures
        pass
    assert results.exists(), log.read_text()[-4000:]
    cases = list(ET.parse(results).iter("testcase"))
    failed = [case.get("name") for case in cases
              if case.find("failure") is not None or case.find("error") is not None]
    assert not failed, f"{', '.join(failed)} failed:\n{log.read_text()[-12000:]}"
    assert cases
    return {case.get("name") for case in cases}
