"""Energy counters: read where there are any, over their turn, and in records, figures and tables."""

import pytest

from sap3d import energy
from sap3d.energy import EnergyMeter
from sap3d.report import flat_row
from sap3d.results import summary_lines
from sap3d.scene import completion_record, read_json
from sap3d.suite import Suite, Variant
from sap3d.suite_tables import time_table


@pytest.fixture
def counters(tmp_path, monkeypatch):
    """Writes microjoules of two packages, and of a part of the first, which is in it already."""

    def write(first: int, second: int):
        for name, value in (("intel-rapl:0", first), ("intel-rapl:1", second), ("intel-rapl:0:0", 7)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "energy_uj").write_text(f"{value}\n")
            (tmp_path / name / "max_energy_range_uj").write_text("9999999\n")

    write(1_000_000, 9_000_000)
    monkeypatch.setattr(energy, "COUNTERS", tmp_path)
    return write


def test_packages_are_added_and_a_counter_may_begin_anew(counters):
    meter = EnergyMeter()
    assert meter.joules() == 0
    counters(3_500_000, 1_000_000)
    assert meter.joules() == pytest.approx(2.5 + 2.0)


def test_what_cannot_be_read_is_not_told(tmp_path, counters):
    assert EnergyMeter(tmp_path / "missing").joules() is None
    meter = EnergyMeter()
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.joules() is None and len(EnergyMeter().start) == 1
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("none")
    assert EnergyMeter().joules() is None


def test_energy_is_in_records_only_where_it_is_known(tmp_path, counters, monkeypatch):
    with completion_record(tmp_path / "record.json", "s", {}, {}):
        counters(1_700_000, 9_000_000)
    assert read_json(tmp_path / "record.json")["energy_joules"] == 0.7
    monkeypatch.setattr(energy, "COUNTERS", tmp_path / "missing")
    with completion_record(tmp_path / "record.json", "s", {}, {}):
        pass
    assert "energy_joules" not in read_json(tmp_path / "record.json")


def test_energy_is_in_figures_and_tables_only_where_it_is_known():
    result = {"type": "T", "NAME": "o", "views": 2, "seconds": 9.0, "peak_memory_mb": 1024, "stages": [{"stage": "s", "seconds": 9.0}]}
    known = {**result, "energy_joules": 1234.5}
    assert "9 s, 1.0 GB, 1.2 kJ" in summary_lines(known)[-1] and "kJ" not in "".join(summary_lines(result))
    assert flat_row(known)["energy_joules"] == 1234.5 and "energy_joules" not in flat_row(result)
    suite = Suite(objects=["o", "p"], views=[2], variants={"full": Variant()})
    rows = [{"variant": "full", "load_before": 0.1, "result": found} for found in (known, {**result, "NAME": "p"})]
    assert "energy (kJ) |" in time_table(suite, rows) and "| 1.2 |" in time_table(suite, rows)
    assert "energy" not in time_table(suite, rows[1:])
