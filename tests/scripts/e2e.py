"""The work of e2e: starts the real binary's hub, agent, joiners and proxy on loopback, on ports that are free, and has
real clients use what is behind them. Every step says what was seen; the first that fails ends it."""

import asyncio
import contextlib
import hashlib
import http.client
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

import grpc
import websockets.asyncio.client
import websockets.asyncio.server
import websockets.exceptions

BINARY, FOLDER = sys.argv[1], pathlib.Path(sys.argv[2])
MIB = int(os.environ.get("E2E_MIB", "1024"))
PATIENCE = 120
started, skipped, passed = [], [], []


def environment(home, **more):
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    kept["PATH"] = kept.get("PATH", "/usr/bin:/bin") + ":/usr/sbin"
    return kept | {"HOME": str(home), "PRIVATECONNECT_HOME": str(home), "CONNECT_NO_PROXY": "1"} | more


def run(*words, home=FOLDER, user=None, **more):
    """Runs to the end; what it said on stdout."""
    done = subprocess.run(
        [str(word) for word in words], env=environment(home, **more), user=user, cwd="/", timeout=PATIENCE * 3,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
    )
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def background(*words, home=FOLDER, user=None):
    log = open(FOLDER / f"{len(started)}.log", "w")
    process = subprocess.Popen(
        [str(word) for word in words], env=environment(home), user=user, cwd="/", stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=log, text=True,
    )
    started.append(process)
    return process


def event(process, name):
    """The JSON line in which it says so."""
    for line in process.stdout:
        said = json.loads(line)
        if said.get("event") == name:
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return said
    raise AssertionError(f"{process.args} never said {name}")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def until(what, works):
    deadline = time.monotonic() + PATIENCE
    while not works():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


def answers(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class Path:
    """A hub, a machine that exposes, a machine that reaches, and its proxy."""

    def __init__(self):
        self.owner, self.user = FOLDER / "owner", FOLDER / "user"
        hub_home = FOLDER / "hub"
        for home in (hub_home, self.owner, self.user):
            home.mkdir()
        hub = background(BINARY, "hub", "--json", "--listen", "127.0.0.1:0", "--tunnel-ports", "off",
                         "--first-key-file", str(hub_home / "first.key"), home=hub_home)
        said = event(hub, "listening")
        key = (hub_home / "first.key").read_text().strip()
        for home in (self.owner, self.user):
            run(BINARY, "up", "--hub", said["url"], "--api-key", key, home=home)
        # What the proxy leads to without any tunnel is listed by somebody else.
        self.routes = {}
        proxy = background(BINARY, "proxy", "start", "--foreground", "--json", "--port", "0", home=self.user)
        self.proxy = event(proxy, "listening")["port"]

    def to(self, name, port):
        """Exposes it there and reaches it here: the local port."""
        event(background(BINARY, "expose", "--json", name, port, home=self.owner), "exposed")
        return event(background(BINARY, "reach", "--json", name, home=self.user), "up")["localPort"]

    def beside(self, name, port):
        """Known to the proxy as it stands, with no hub in between."""
        self.routes[name] = port
        listed = [
            {"serviceName": name, "localPort": port, "pid": os.getpid(), "startedAt": "2026-03-02T10:30:00Z"}
            for name, port in self.routes.items()
        ]
        folder = self.user / ".connect"
        folder.mkdir(exist_ok=True)
        (folder / "draft").write_text(json.dumps(listed))
        (folder / "draft").rename(folder / "active-routes.json")
        until(f"the proxy knows {name}", lambda: self.knows(name))

    def knows(self, name):
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy, timeout=10)
        connection.request("GET", "/", headers={"Host": f"{name}.localhost"})
        status = connection.getresponse().status
        connection.close()
        return status != 404


def step(title):
    def decorate(work):
        def timed(path):
            began = time.monotonic()
            said = work(path)
            (skipped if said.startswith("SKIPPED") else passed).append(title)
            print(f"[ok] {title}: {said} ({time.monotonic() - began:.1f} s)", flush=True)

        return timed

    return decorate


def is_here(program):
    return shutil.which(program, path=environment(FOLDER)["PATH"])


def postgres_user():
    return "postgres" if os.geteuid() == 0 else None


@step("pgbench, TPC-B, 8 clients")
def pgbench(path):
    programs = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        return "SKIPPED, there is no PostgreSQL"
    bin, data, port, user = programs[-1].parent, FOLDER / "postgres", free_port(), postgres_user()
    data.mkdir()
    if user:
        shutil.chown(data, user)
    run(bin / "initdb", "--no-sync", "-A", "trust", "-U", "bench", "-D", data, home=data, user=user)
    background(bin / "postgres", "-D", data, "-p", port, "-c", "listen_addresses=127.0.0.1", "-k", data, "-c", "fsync=off", home=data, user=user)
    until("PostgreSQL answers", lambda: answers(port))
    local = path.to("postgres", port)
    client = [bin / "pgbench", "-h", "127.0.0.1", "-p", local, "-U", "bench", "postgres"]
    until("PostgreSQL is ready", lambda: subprocess.run([bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(local)]).returncode == 0)
    run(*client, "-i", "-q", "-s", "1")
    transactions = 200
    said = run(*client, "-c", "8", "-j", "2", "-t", transactions, "-n")
    done = re.search(r"actually processed: (\d+)/(\d+)", said)
    assert done and done.group(1) == done.group(2) == str(8 * transactions), said
    failed = re.search(r"failed transactions: (\d+)", said)
    assert not failed or failed.group(1) == "0", said
    # TPC-B's own rule: every transaction adds the same to an account, a teller, a branch and the history.
    sums = "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history), (select count(*) from pgbench_history)"
    *balances, count = run(bin / "psql", "-h", "127.0.0.1", "-p", local, "-U", "bench", "-At", "-F", " ", "-c", sums, "postgres").split()
    assert len(set(balances)) == 1 and count == str(8 * transactions), (balances, count)
    return f"{count} transactions, the books balance, {re.search(r'tps = ([0-9.]+)', said).group(1)} a second"


@step("redis-benchmark")
def redis(path):
    if not is_here("redis-server"):
        return "SKIPPED, there is no Redis"
    port = free_port()
    background("redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", FOLDER)
    until("Redis answers", lambda: answers(port))
    local = path.to("redis", port)
    said = run("redis-benchmark", "-h", "127.0.0.1", "-p", local, "-c", 20, "-n", 5000, "-t", "set,get,incr,lpush,mset", "-q")
    assert len(re.findall(r"requests per second", said)) >= 5, said
    said += run("redis-benchmark", "-h", "127.0.0.1", "-p", local, "-n", 20000, "-P", 16, "-t", "set", "-q")
    return ", ".join(f"{name} {rate}/s" for name, rate in re.findall(r"(\w+)[^:\n\r]*: ([0-9.]+) requests", said))


class Web(http.server.BaseHTTPRequestHandler):
    """So many bytes down, so many up, each with its checksum; and the files of a folder."""

    protocol_version = "HTTP/1.1"
    piece = hashlib.sha512(b"piece").digest() * 1024
    folder = None
    asked = set()

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        if url.path.startswith("/bytes/"):
            return self.send_pieces(int(url.path.removeprefix("/bytes/")))
        type(self).asked.add(url.path)
        file = self.folder / url.path.strip("/") if self.folder else None
        body = file.read_bytes() if file and file.is_file() else None
        self.answer(404 if body is None else 200, body or b"", "text/html" if url.path.endswith("html") else "text/plain")

    def do_PUT(self):
        digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
        while left:
            piece = self.rfile.read(min(left, 1 << 18))
            if not piece:
                return
            digest.update(piece)
            left -= len(piece)
        self.answer(200, digest.hexdigest().encode(), "text/plain")

    def send_pieces(self, count):
        self.send_response(200)
        self.send_header("Content-Length", str(count * len(self.piece)))
        self.end_headers()
        for _ in range(count):
            self.wfile.write(self.piece)

    def answer(self, status, body, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def web(folder=None):
    handler = type("Handler", (Web,), {"folder": folder, "asked": set()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1], handler


@step(f"curl, {MIB} MiB each way")
def curl(path):
    port, handler = web()
    count = MIB * 1024 * 1024 // len(handler.piece)
    wanted = hashlib.sha256()
    for _ in range(count):
        wanted.update(handler.piece)
    local = path.to("web", port)
    rates = []
    for host, at in (("127.0.0.1", local), ("web.localhost", path.proxy)):
        file = FOLDER / "down"
        resolve = ["--resolve", f"{host}:{at}:127.0.0.1"]
        speed = ["-w", "%{speed_download} %{speed_upload}"]
        down = run("curl", "-sSf", *resolve, *speed, "-o", file, f"http://{host}:{at}/bytes/{count}")
        with open(file, "rb") as bytes:
            assert hashlib.file_digest(bytes, "sha256").digest() == wanted.digest(), "what came down is something else"
        up = run("curl", "-sSf", *resolve, "-H", "Expect:", "-w", "\n%{speed_download} %{speed_upload}", "-T", file, f"http://{host}:{at}/up")
        digest, speeds = up.split("\n")
        assert digest == wanted.hexdigest(), "what went up is something else"
        rates.append(f"{float(down.split()[0]) / 1e6:.0f} down and {float(speeds.split()[1]) / 1e6:.0f} MB/s up")
        file.unlink()
    return f"checksums fit; tunnel {rates[0]}, tunnel and proxy {rates[1]}"


@step("git clone over http and ssh")
def git(path):
    if not (is_here("git") and is_here("sshd")):
        return "SKIPPED, there is no git or no sshd"
    source, bare = FOLDER / "source", FOLDER / "served" / "project.git"
    identity = ["-c", "user.name=e2e", "-c", "user.email=e2e@localhost"]
    source.mkdir()
    run("git", "init", "-q", source)
    for number in range(300):
        (source / f"{number}.txt").write_text(hashlib.sha512(str(number).encode()).hexdigest() * 200)
    run("git", "-C", source, "add", ".")
    run("git", "-C", source, *identity, "commit", "-q", "-m", "files")
    run("git", "clone", "-q", "--bare", source, bare)
    run("git", "-C", bare, "update-server-info")
    head = run("git", "-C", source, "rev-parse", "HEAD")

    def cloned(url, **more):
        run("git", "clone", "-q", url, FOLDER / "clone", **more)
        assert run("git", "-C", FOLDER / "clone", "rev-parse", "HEAD") == head
        run("git", "-C", FOLDER / "clone", "fsck", "--full")
        shutil.rmtree(FOLDER / "clone")

    port, _ = web(FOLDER / "served")
    local = path.to("git", port)
    cloned(f"http://127.0.0.1:{local}/project.git")
    cloned(f"http://git.localhost:{path.proxy}/project.git")
    keys = FOLDER / "keys"
    keys.mkdir(mode=0o700)
    for name in ("host", "user"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name)
    if os.geteuid() == 0:
        pathlib.Path("/run/sshd").mkdir(exist_ok=True)
    ssh_port, user = free_port(), run("id", "-un").strip()
    config = keys / "config"
    config.write_text(
        f"Port {ssh_port}\nListenAddress 127.0.0.1\nHostKey {keys}/host\nAuthorizedKeysFile {keys}/user.pub\n"
        f"StrictModes no\nUsePAM no\nPermitRootLogin yes\nPidFile {keys}/pid\n"
    )
    background(is_here("sshd"), "-D", "-e", "-f", config)
    until("sshd answers", lambda: answers(ssh_port))
    local = path.to("ssh", ssh_port)
    command = f"ssh -i {keys}/user -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile={keys}/known"
    cloned(f"ssh://{user}@127.0.0.1:{local}{bare}", GIT_SSH_COMMAND=command)
    return f"{head.strip()[:12]} by tunnel, by tunnel and proxy, by ssh; fsck finds no fault"


async def websocket_server(connection):
    words = {"/close": (3456, "as asked"), "/going": (1001, "")}
    if connection.request.path in words:
        code, reason = words[connection.request.path]
        return await connection.close(code, reason)
    if connection.request.path == "/gone":
        return connection.transport.abort()
    # How the client closes is the client's verdict.
    with contextlib.suppress(websockets.exceptions.ConnectionClosedError):
        async for message in connection:
            await connection.send(message)


async def websocket_verdicts(port, host):
    """What the library says of echo, pings, large and fragmented messages, and of every way to close."""

    def client(path, **more):
        return websockets.asyncio.client.connect(
            f"ws://{host}:{port}{path}", host="127.0.0.1", port=port, proxy=None, max_size=None, **more
        )

    verdicts = {}
    for compression in (None, "deflate"):
        async with client("/echo", compression=compression) as one:
            messages = ["", "héllo \U0001f600", b"", bytes(range(256)), "x" * 125, "x" * 126, b"y" * 65535, b"z" * 65536, b"w" * 3_000_000]
            for message in messages:
                await one.send(message)
                assert await one.recv() == message
            await one.send([b"in ", b"three ", b"parts"])
            verdicts["fragments"] = await one.recv()
            await asyncio.wait_for(await one.ping(b"are you there"), 30)
            extensions = [extension.name for extension in one.protocol.extensions]
        verdicts[f"compression {compression}"] = (extensions, one.close_code, one.close_reason)
    for code, reason in ((1000, ""), (1001, "leaving"), (3000, "a" * 123), (4999, "ünïcode")):
        async with client("/echo") as one:
            await one.close(code, reason)
        verdicts[f"close {code}"] = (one.close_code, one.close_reason)
    for path in ("/close", "/going", "/gone"):
        async with client(path) as one:
            try:
                verdicts[path] = await asyncio.wait_for(one.recv(), 30)
            except websockets.exceptions.ConnectionClosed as closed:
                received = closed.rcvd and (closed.rcvd.code, closed.rcvd.reason)
                verdicts[path] = (type(closed).__name__, received, one.close_code)
    try:
        async with client("/echo", subprotocols=["none-of-theirs"]) as one:
            verdicts["subprotocol"] = one.subprotocol
    except websockets.exceptions.InvalidHandshake as refused:
        verdicts["subprotocol"] = type(refused).__name__
    async with client("/echo") as one:
        # A text message that is no text: the server has to end it with 1007.
        await one.send(b"\xff\xfe", text=True)
        try:
            verdicts["not UTF-8"] = await asyncio.wait_for(one.recv(), 30)
        except websockets.exceptions.ConnectionClosed as closed:
            verdicts["not UTF-8"] = closed.rcvd and closed.rcvd.code
    many = [client("/echo") for _ in range(20)]
    open_ones = await asyncio.gather(*many)
    await asyncio.gather(*(one.send(str(number)) for number, one in enumerate(open_ones)))
    assert await asyncio.gather(*(one.recv() for one in open_ones)) == [str(number) for number in range(20)]
    await asyncio.gather(*(one.close() for one in open_ones))
    return verdicts


@step("a WebSocket library")
def websocket(path):
    async def all_ways():
        async with websockets.asyncio.server.serve(websocket_server, "127.0.0.1", 0, max_size=None) as server:
            port = server.sockets[0].getsockname()[1]
            direct = await websocket_verdicts(port, "127.0.0.1")
            local = await asyncio.to_thread(path.to, "ws", port)
            await asyncio.to_thread(path.beside, "ws-beside", port)
            ways = {"tunnel": (local, "127.0.0.1"), "proxy": (path.proxy, "ws-beside.localhost"), "tunnel and proxy": (path.proxy, "ws.localhost")}
            for way, (at, host) in ways.items():
                seen = await websocket_verdicts(at, host)
                differ = {name: (direct[name], seen[name]) for name in direct if direct[name] != seen[name]}
                assert not differ, f"{way} differs from direct: {differ}"
            return len(direct)

    return f"{asyncio.run(asyncio.wait_for(all_ways(), PATIENCE * 2))} verdicts, the same direct, by tunnel, by proxy and by both"


class Remote(grpc.GenericRpcHandler):
    """Methods of bytes, without any generated code."""

    def service(self, call):
        def stream(request, _):
            for number in range(200):
                yield request + str(number).encode()

        def fail(_, context):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked")

        def sleep(_, context):
            stop = threading.Event()
            context.add_callback(stop.set)
            stop.wait(30)
            return b""

        return {
            "/e2e/echo": grpc.unary_unary_rpc_method_handler(lambda request, _: request),
            "/e2e/stream": grpc.unary_stream_rpc_method_handler(stream),
            "/e2e/sum": grpc.stream_unary_rpc_method_handler(lambda requests, _: str(sum(len(one) for one in requests)).encode()),
            "/e2e/talk": grpc.stream_stream_rpc_method_handler(lambda requests, _: (one[::-1] for one in requests)),
            "/e2e/fail": grpc.unary_unary_rpc_method_handler(fail),
            "/e2e/sleep": grpc.unary_unary_rpc_method_handler(sleep),
        }.get(call.method)


def grpc_verdicts(port):
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        def code(call):
            try:
                call()
            except grpc.RpcError as error:
                return error.code().name, error.details()

        large = os.urandom(3_000_000)
        futures = [channel.unary_unary("/e2e/echo").future(str(n).encode(), timeout=60) for n in range(200)]
        return {
            "unary": channel.unary_unary("/e2e/echo")(large, timeout=60) == large,
            "at once": [future.result() for future in futures] == [str(n).encode() for n in range(200)],
            "from the server": len(b"".join(channel.unary_stream("/e2e/stream")(b"x" * 1000, timeout=60))),
            "to the server": channel.stream_unary("/e2e/sum")((b"y" * 5000 for _ in range(200)), timeout=60),
            "both ways": b"".join(channel.stream_stream("/e2e/talk")((b"abc" for _ in range(200)), timeout=60)),
            "refused": code(lambda: channel.unary_unary("/e2e/fail")(b"", timeout=60)),
            "unknown": code(lambda: channel.unary_unary("/e2e/none")(b"", timeout=60)),
            "too late": code(lambda: channel.unary_unary("/e2e/sleep")(b"", timeout=0.5)),
        }


@step("gRPC over a TCP tunnel")
def grpc_calls(path):
    from concurrent import futures

    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((Remote(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    direct = grpc_verdicts(port)
    through = grpc_verdicts(path.to("grpc", port))
    server.stop(0)
    assert direct == through and direct["unary"] and direct["at once"], (direct, through)
    return f"{len(direct)} verdicts, the same direct and by tunnel"


@step("Chromium, a page with 200 resources, through the proxy")
def chromium(path):
    if not is_here("chromium"):
        return "SKIPPED, there is no Chromium"
    folder = FOLDER / "site"
    folder.mkdir()
    for number in range(200):
        (folder / f"{number}.js").write_text(f"loaded.push({number});")
    scripts = "".join(f'<script src="/{number}.js"></script>' for number in range(200))
    (folder / "index.html").write_text(
        f"<!doctype html><script>const loaded = [];</script>{scripts}"
        "<p id=said></p><script>said.textContent = `loaded ${new Set(loaded).size} in order ${loaded.every((n, at) => n === at)}`</script>"
    )
    port, handler = web(folder)
    path.to("site", port)
    out = FOLDER / "chromium.html"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={FOLDER}/chromium"]
    options += ["--disable-crash-reporter", "--disable-breakpad", "--timeout=20000", "--dump-dom", f"http://site.localhost:{path.proxy}/index.html"]
    with open(out, "w") as file:
        subprocess.run(["timeout", "-k", "1", "60", "chromium", *options], stdout=file, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=environment(FOLDER), cwd="/")
    assert "loaded 200 in order true" in out.read_text(), out.read_text()[-500:]
    assert len(handler.asked & {f"/{number}.js" for number in range(200)}) == 200
    return "all 200, each once and in order"


def main():
    path = Path()
    for work in (pgbench, redis, curl, git, websocket, grpc_calls, chromium):
        work(path)
    print(f"{len(passed)} passed, 0 failed, {len(skipped)} skipped")
    # In CI everything is installed first, so that nothing may be missing.
    return 1 if skipped and os.environ.get("CI") else 0


try:
    status = main()
finally:
    for process in reversed(started):
        process.send_signal(signal.SIGINT)
    for process in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
sys.stdout.flush()
os._exit(status)
