"""What can be seen of the service from outside, and what must never be."""

import io
import json
import shutil
import sqlite3
from contextlib import closing

import pytest
from gitrepo import GitRepository
from service import ENDPOINT, S3_KEYS, Registry, artifacts, digest, output, remote

from registry import logs
from registry.audit import Event
from registry.web.health import SOON

FILES = {
    ".dvc/config": remote("s3://bucket/dvc"),
    "dvc.yaml": artifacts(m="model.pkl"),
    "model.pkl.dvc": output("model.pkl", digest("1")),
}


@pytest.fixture
def registry(publish) -> Registry:
    return publish(FILES)


def lines(log: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def records(registry: Registry) -> list[dict[str, object]]:
    """The audit log, with all that was waiting to be written."""
    registry.services.audit.close()
    return [json.loads(row.record) for row in registry.services.audit.rows()]


class TestTheLog:
    def test_a_request_is_one_line_that_names_its_route_and_its_token(self, registry, log) -> None:
        answer = registry.ask(stage="")

        (line,) = lines(log)
        assert line.pop("ms") >= 0
        assert line.pop("time").endswith("Z")
        assert line == {
            "level": "info",
            "logger": "registry.web.observe",
            "message": "request",
            "request": answer.headers["X-Request-Id"],
            "method": "GET",
            "route": ENDPOINT,
            "dialect": "studio",
            "status": 200,
            "token": registry.services.access.principal(registry.everything).id,
            "address": "127.0.0.1",
        }

    def test_a_refusal_says_why(self, registry, log) -> None:
        registry.ask(stage="prod")
        registry.client.get(ENDPOINT)

        refused, anonymous = lines(log)
        assert (refused["status"], refused["refusal"]) == (404, "StageNotFound")
        assert "'prod'" in str(refused["reason"])
        assert anonymous["refusal"] == "Unauthenticated"
        assert anonymous["reason"] == "no token in the Authorization header"

    def test_no_secret_is_in_any_line_whatever_is_asked(self, registry, log) -> None:
        token = registry.everything
        link = next(iter(registry.links().values()))
        headers = {"Authorization": f"token {token}", "X-Request-Id": token}
        for path in (
            f"{ENDPOINT}?repo=https://u:canary1@git.example/x&name=m&token={token}",
            f"{ENDPOINT}?repo=team/models&name=m&version={token}",
            f"{ENDPOINT}?repo={token}&name={token}",
            f"/objects/{token}?sig=canary2",
            f"/{token}",
        ):
            answer = registry.client.get(path, headers=headers)
            assert token not in str(answer.headers)
        registry.ask(token=f"{token}canary3")
        signature = link.partition("X-Amz-Signature=")[2]

        secret = token.removeprefix("reg_").partition(".")[0]
        rows = json.dumps(records(registry))
        for canary in (token, secret, "canary1", "canary2", "canary3", signature):
            assert canary
            assert canary not in log.getvalue(), canary
            assert canary not in rows, canary

    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            ("0123456789abcdef", True),
            ("trace:1-5f0c.a_b", True),
            ("short", False),
            ("x" * 65, False),
            ("has a space in it", False),
            ("reg_0123456789abcdef", False),
            ('"}{"injected', False),
        ],
    )
    def test_a_request_keeps_a_sane_id_and_gets_one_otherwise(self, registry, given, kept) -> None:
        answer = registry.client.get("/healthz", headers={"X-Request-Id": given})

        assert (answer.headers["X-Request-Id"] == given) is kept
        assert len(answer.headers["X-Request-Id"]) >= 8

    def test_the_id_of_a_request_does_not_outlive_it(self, registry) -> None:
        registry.ask()

        assert logs.request_id.get() == ""


class TestTheAuditLog:
    def test_what_was_granted_is_written_with_all_that_was_decided(self, registry) -> None:
        answer = registry.ask()

        (record,) = records(registry)
        record.pop("at")
        assert record == {
            "request": answer.headers["X-Request-Id"],
            "address": "127.0.0.1",
            "token": registry.services.access.principal(registry.everything).id,
            "repository": "team/models",
            "selector": "m",
            "decision": "granted",
            "reason": None,
            "revision": answer.headers["X-Registry-Revision"],
            "version": "v1.0.0",
            "files": 1,
        }

    @pytest.mark.parametrize(
        ("query", "reason"),
        [
            ({"stage": "prod"}, "StageNotFound"),
            ({"version": "v9.9.9"}, "VersionNotFound"),
            ({"repo": "https://u:p@git.example/other.git"}, "RepositoryNotFound"),
            ({"version": "v1.0.0", "stage": "prod"}, "InvalidRequest"),
        ],
    )
    def test_what_was_refused_is_written_with_the_reason(self, registry, query, reason) -> None:
        registry.client.get(
            ENDPOINT,
            query_string={"repo": "team/models", "name": "m", **query},
            headers={"Authorization": f"token {registry.everything}"},
        )

        (record,) = records(registry)
        assert (record["decision"], record["reason"]) == ("refused", reason)
        assert record["files"] == 0
        assert "://" not in json.dumps(record)
        assert "u:p" not in json.dumps(record)

    def test_a_scope_that_is_missing_is_a_refusal_too(self, registry) -> None:
        registry.ask(token=registry.token(scopes=[]))

        assert [record["reason"] for record in records(registry)] == ["Forbidden"]

    def test_where_a_row_is_required_there_is_no_answer_without_one(
        self, publish, tmp_path
    ) -> None:
        registry = publish(FILES, audit="required")
        assert registry.ask().status_code == 200
        assert len(list(registry.services.audit.rows())) == 1
        with closing(sqlite3.connect(tmp_path / "var" / "registry.db")) as lock:
            lock.execute("BEGIN EXCLUSIVE")
            for query in ({}, {"stage": "prod"}):
                answer = registry.ask(**query)

                assert answer.status_code == 503
                assert int(answer.headers["Retry-After"]) > 0
                assert "X-Amz" not in answer.text
        assert registry.ask().status_code == 200

    def test_where_a_row_is_not_required_a_locked_database_holds_nobody_up(
        self, registry, tmp_path
    ) -> None:
        with closing(sqlite3.connect(tmp_path / "var" / "registry.db")) as lock:
            lock.execute("BEGIN EXCLUSIVE")

            assert registry.ask().status_code == 200

        assert len(records(registry)) == 1

    def test_the_address_is_the_clients_only_as_far_as_proxies_are_trusted(
        self, registry, publish, serve, tmp_path
    ) -> None:
        origin = GitRepository(tmp_path / "origin.git")
        behind = serve({"team/models": origin}, directory="behind", trusted_proxies=1)
        for service, expected in ((registry, "127.0.0.1"), (behind, "10.1.2.3")):
            service.client.get(
                f"{ENDPOINT}?repo=team/models&name=m",
                headers={
                    "Authorization": f"token {service.everything}",
                    "X-Forwarded-For": "6.6.6.6, 10.1.2.3",
                },
            )

            assert [record["address"] for record in records(service)] == [expected]


class TestReadiness:
    def test_a_service_that_can_answer_is_ready_and_tells_strangers_no_names(
        self, registry
    ) -> None:
        answer = registry.client.get("/readyz")

        assert (answer.status_code, answer.json) == (200, {
            "status": "ready", "checks": {"database": "ok", "data_dir": "ok", "clock": "ok"},
        })  # fmt: skip

    def test_a_token_sees_its_repositories_and_the_locations_granted_to_them(self, publish) -> None:
        storage = [
            {"url": f"s3://{name}/dvc", "repositories": [pattern], **S3_KEYS}
            for name, pattern in (("bucket", "team/*"), ("private", "other/*"))
        ]
        registry = publish(FILES, storage=storage)
        registry.ask()
        registry.clock.now += 5

        def seen(token: str) -> tuple[object, object]:
            answer = registry.client.get("/readyz", headers={"Authorization": f"token {token}"})
            return answer.json["repositories"], answer.json["locations"]

        state = {"last_seen": "2027-01-15T08:00:00Z", "age": 5, "problem": None}
        assert seen(registry.everything) == (
            {"team/models": state},
            {"s3://bucket/dvc": {"problem": None, "clock_ahead": None}},
        )
        assert seen(registry.token("other/*")) == ({}, {})

    def test_an_origin_that_is_gone_is_told_and_leaves_the_service_ready(
        self, registry, tmp_path
    ) -> None:
        registry.ask()
        shutil.rmtree(tmp_path / "origin.git")
        registry.clock.now += 3600
        assert registry.ask().status_code == 200

        answer = registry.client.get(
            "/readyz", headers={"Authorization": f"token {registry.everything}"}
        )

        assert answer.status_code == 200
        assert answer.json["repositories"]["team/models"]["age"] == 3600
        assert answer.json["repositories"]["team/models"]["problem"]

    def test_a_database_that_is_locked_makes_it_unready_until_it_is_free(
        self, registry, tmp_path
    ) -> None:
        with closing(sqlite3.connect(tmp_path / "var" / "registry.db")) as lock:
            lock.execute("PRAGMA locking_mode=EXCLUSIVE")
            registry.services.access.close()
            registry.services.audit.close()
            registry.services.issued.close()
            lock.execute("BEGIN EXCLUSIVE")
            lock.execute("DELETE FROM tokens WHERE id = 'none'")
            lock.commit()
            answer = registry.client.get("/readyz")

            assert answer.status_code == 503
            assert answer.headers["Retry-After"] == "5"
            assert answer.json["checks"]["database"] == "does not answer"

            fresh = registry.ask()
            assert fresh.status_code == 503
            assert int(fresh.headers["Retry-After"]) > 0
        registry.clock.now += 1
        assert registry.client.get("/readyz").status_code == 200

    def test_audit_rows_that_wait_are_a_warning_until_they_are_written(
        self, registry, tmp_path
    ) -> None:
        event = Event("request", "address", "token", "team/models", "m", "granted", files=1)
        with closing(sqlite3.connect(tmp_path / "var" / "registry.db")) as lock:
            lock.execute("BEGIN EXCLUSIVE")
            for _ in range(SOON + 2):
                registry.services.audit.write(event)
            answer = registry.client.get("/readyz")

            assert (answer.status_code, answer.json["status"]) == (200, "ready")
            assert "rows wait" in answer.json["warnings"]["audit"]
        registry.services.audit.close()

        assert "warnings" not in registry.client.get("/readyz").json

    def test_a_data_dir_that_is_gone_makes_it_unready(self, registry, tmp_path) -> None:
        (tmp_path / "var").rename(tmp_path / "elsewhere")

        answer = registry.client.get("/readyz")

        assert answer.status_code == 503
        assert "No such file" in answer.json["checks"]["data_dir"]

    def test_a_clock_without_a_battery_makes_it_unready(self, registry) -> None:
        registry.clock.now = 0.0

        assert registry.client.get("/readyz").json["checks"]["clock"] == "is before 2026"


class TestMetrics:
    def scrape(self, registry: Registry, token: str) -> str:
        answer = registry.client.get("/metrics", headers={"Authorization": f"token {token}"})
        assert answer.status_code == 200
        assert answer.mimetype == "text/plain"
        return answer.text

    def test_they_need_a_scope_of_their_own(self, registry) -> None:
        registry_token = registry.everything
        answer = registry.client.get(
            "/metrics", headers={"Authorization": f"token {registry_token}"}
        )

        assert registry.client.get("/metrics").status_code == 401
        assert (answer.status_code, answer.json["detail"]) == (
            403,
            "This token lacks the scope metrics:read.",
        )

    def test_they_are_open_if_the_operator_says_so(self, publish) -> None:
        assert publish(FILES, metrics="public").client.get("/metrics").status_code == 200

    def test_they_count_what_happened(self, registry) -> None:
        token = registry.token(scopes=["metrics:read"])
        registry.ask()
        registry.ask()
        registry.ask(stage="prod")
        records(registry)
        registry.clock.now += 7

        text = self.scrape(registry, token).splitlines()

        for line in (
            'registry_requests_total{dialect="studio",outcome="ok"} 2.0',
            'registry_requests_total{dialect="studio",outcome="StageNotFound"} 1.0',
            'registry_request_seconds_count{dialect="studio"} 3.0',
            'registry_links_signed_total{repository="team/models"} 2.0',
            'registry_audit_rows_total{outcome="written"} 3.0',
            'registry_fetch_seconds_count{outcome="ok",repository="team/models"} 1.0',
            'registry_mirror_age_seconds{repository="team/models"} 7.0',
            'registry_origin_failing{repository="team/models"} 0.0',
        ):
            assert line in text, line
        assert 'registry_cache_entries{cache="manifest_bytes"} 0.0' not in text
        assert any(line.startswith("registry_cache_entries{") for line in text)

    def test_they_hold_nothing_that_a_client_made_up(self, registry) -> None:
        token = registry.token(scopes=["metrics:read"])
        registry.client.get("/canary?canary=canary")
        registry.ask("canary", stage="canary", repo="canary")

        assert "canary" not in self.scrape(registry, token)


class TestRateLimits:
    def test_a_token_that_asks_too_often_is_told_when_to_come_back(self, publish) -> None:
        registry = publish(FILES, rate_limit=3)
        answers = [registry.ask() for _ in range(4)]

        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert answers[0].headers["RateLimit-Policy"] == '"token";q=3;w=60'
        assert answers[0].headers["RateLimit"] == '"token";r=2;t=20'
        assert answers[3].headers["RateLimit"] == '"token";r=0;t=60'
        assert answers[3].headers["Retry-After"] == "20"
        assert answers[3].json["code"] == "too_many_requests"
        assert answers[3].json["retry_after"] == 20

        registry.clock.now += 19.5
        assert registry.ask().status_code == 429
        registry.clock.now += 0.5
        assert registry.ask().status_code == 200
        assert registry.ask().status_code == 429

    def test_one_token_does_not_use_up_what_another_has(self, publish) -> None:
        registry = publish(FILES, rate_limit=1)

        assert registry.ask().status_code == 200
        assert registry.ask().status_code == 429
        assert registry.ask(token=registry.token()).status_code == 200

    def test_a_clock_that_is_set_back_locks_nobody_out(self, publish) -> None:
        registry = publish(FILES, rate_limit=1)
        registry.ask()
        registry.clock.now -= 3600

        assert registry.ask().status_code == 429
        registry.clock.now += 60
        assert registry.ask().status_code == 200

    def test_without_a_limit_nothing_is_said_about_one(self, registry) -> None:
        assert "RateLimit" not in registry.ask().headers
