"""Gateware of Lutra.

Importing this package is free of Amaranth: hosts use :mod:`hdl.config`, :mod:`hdl.isa`,
:mod:`hdl.registers` and :mod:`hdl.errors` without it.
"""
