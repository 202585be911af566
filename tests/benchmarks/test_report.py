"""Numbers that people compare servers by have to be computed rightly."""

import xml.etree.ElementTree as xml
from pathlib import Path

from tests.benchmarks.cases import Sample
from tests.benchmarks.load import HttpLoad
from tests.benchmarks.report import Results, markdown, median, ratio, svg, write_page


def samples(*values: float, errors: int = 0) -> list[Sample]:
    return [Sample(value=value, errors=errors) for value in values]


RESULTS: Results = {
    "plain": {
        "floor": samples(5.0),
        "asgictl": samples(10.0, 30.0),
        "uvicorn": samples(20.0, 40.0),
    },
    "start": {"asgictl": samples(100.0), "uvicorn": samples(50.0)},
    "pipelining": {"uvicorn": samples(20.0), "gunicorn": samples(1.0, errors=7)},
}


def test_the_ratio_is_the_median_of_the_ratios_within_the_rounds() -> None:
    row = {"asgictl": samples(10, 40, 30), "uvicorn": samples(20, 40, 40)}
    assert ratio(row, "asgictl", "uvicorn") == 0.75


def test_a_sample_with_lost_requests_is_not_compared() -> None:
    row = {"asgictl": samples(10), "gunicorn": samples(1, errors=3)}
    assert ratio(row, "gunicorn", "asgictl") is None
    assert median(row["gunicorn"]) is None


def test_a_server_that_fails_in_a_minority_of_rounds_is_judged_by_the_others() -> None:
    assert median([*samples(4, 6), *samples(1, errors=1)]) == 5


def test_the_table_shows_failures_gaps_and_ratios() -> None:
    rows = markdown(RESULTS, "uvicorn").splitlines()
    assert rows[0] == "| case | unit | floor | asgictl | uvicorn | gunicorn |"
    assert rows[2] == "| GET, 13 bytes | µs | 5.0 (×0.25) | 20.0 (×0.62) | 30.0 | – |"
    assert rows[3] == "| start to first answer | ms | – | 100 (×2.00) | 50.0 | – |"
    assert rows[4].endswith("| 20.0 | fails (7) |")


def test_without_the_base_ratios_are_to_the_first_server() -> None:
    rows = markdown(
        {"plain": {"floor": samples(5), "granian": samples(10)}}, "uvicorn"
    ).splitlines()
    assert rows[2] == "| GET, 13 bytes | µs | 5.0 (×0.50) | 10.0 |"


def test_the_picture_is_well_formed_and_has_a_bar_for_each_time_under_load() -> None:
    picture = xml.fromstring(svg(RESULTS))
    assert len(picture.findall("{http://www.w3.org/2000/svg}rect")) == 4


def test_the_page_holds_the_table_and_names_the_picture_beside_it(tmp_path: Path) -> None:
    write_page(RESULTS, {"uvicorn": "0.54.0"}, "uvicorn", tmp_path)
    page = (tmp_path / "performance.md").read_text()
    assert markdown(RESULTS, "uvicorn") in page
    assert "(performance.svg)" in page
    assert "uvicorn 0.54.0" in page
    assert (tmp_path / "performance.svg").exists()


def test_the_program_for_wrk_quotes_what_it_is_given() -> None:
    script = HttpLoad(headers={"Cookie": 'a="b"'}, body=10, pipeline=4).script()
    assert r'wrk.headers["Cookie"] = "a=\"b\""' in script
    assert 'wrk.body = string.rep("b", 10)' in script
    assert "string.rep(one, 4)" in script
