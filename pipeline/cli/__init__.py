"""Typer commands: parse, call one function, report."""
