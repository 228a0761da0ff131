"""Everything the containers service talks to, in memory: images, networks, volumes, monitors, runtime, log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from engine.containers import Containers
from engine.containers.execs import Execs
from engine.containers.start import ContainerSettings
from engine.errors import EngineError, NotFound, StartFailed
from engine.events import Events
from engine.model.image import Image, ImageConfig
from engine.model.network import EndpointSettings
from engine.monitor.client import Exit, LaunchFailed
from engine.oci import spec as ocispec
from engine.oci.host import Host
from engine.store import Store
from engine.workers import Workers

HOST = Host(cgroup_version=1, cpus=2, kernel=(6, 1))


class Journal(list[str]):
    """What was done, in order; ``fail`` names the step that raises."""

    def __init__(self) -> None:
        super().__init__()
        self.fail: dict[str, BaseException] = {}

    def did(self, step: str) -> None:
        self.append(step)
        if step in self.fail:
            raise self.fail[step]


class FakeImages:
    driver = SimpleNamespace(context=SimpleNamespace(name="fake"))

    def __init__(self, journal: Journal, root: Path) -> None:
        self._journal = journal
        self._root = root
        self.known = {
            "busybox": Image(
                id="sha256:" + "a" * 64,
                config=ImageConfig(config={"Cmd": ["sh"], "Env": ["PATH=/bin"], "Labels": {"from": "image"}}),
                platform="linux/amd64",
                chain_id="sha256:" + "b" * 64,
                size=1000,
                repo_tags=["busybox:latest"],
            )
        }

    def get(self, reference: str, platform: object = None) -> Image:
        try:
            return self.known[reference]
        except KeyError:
            raise NotFound(f"No such image: {reference}:latest") from None

    def descendants(self, reference: str) -> frozenset[str]:
        return frozenset([self.known[reference].id]) if reference in self.known else frozenset()

    def resolves(self, reference: str, image_id: str) -> bool:
        return reference in self.known

    def size(self, image_id: str) -> int:
        return 1000

    async def create_rootfs(self, container_id: str, image: Image | None, options: object) -> None:
        self._journal.did("create_rootfs")

    async def mount_rootfs(self, container_id: str) -> Path:
        self._journal.did("mount_rootfs")
        return self._root

    async def unmount_rootfs(self, container_id: str) -> None:
        self._journal.did("unmount_rootfs")

    async def remove_rootfs(self, container_id: str) -> None:
        self._journal.did("remove_rootfs")


class FakeNetworks:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def validate(self, host_config: Any, config: Any, requested: Any) -> dict[str, EndpointSettings]:
        return {host_config.network_mode: EndpointSettings()}

    async def attach(self, container: Any) -> Any:
        self._journal.did("attach")
        networks = {name: EndpointSettings(ip_address="10.0.0.2", network_id="n" * 64) for name in container.networks}
        return SimpleNamespace(sandbox_key="/netns/x", sandbox_id="sandbox", networks=networks, ports={})

    async def detach(self, container: Any) -> None:
        self._journal.did("detach")

    def files(self, container: Any, attachment: Any) -> dict[str, bytes]:
        return {"hosts": b"127.0.0.1 localhost\n", "hostname": b"x\n", "resolv.conf": b""}

    def link_environment(self, container: Any) -> list[str]:
        return []

    def named(self, container: Any) -> Any:
        return container

    async def renamed(self, container: Any) -> None:
        self._journal.did("renamed")


class FakeVolumes:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def resolve(self, *args: object) -> list[Any]:
        self._journal.did("resolve")
        return []

    def may_need_content(self, container: Any) -> bool:
        return False

    async def mount(self, container: Any) -> list[Any]:
        self._journal.did("mount_volumes")
        return []

    async def unmount(self, container: Any) -> None:
        self._journal.did("unmount_volumes")

    async def release(self, container: Any, *, anonymous: bool) -> None:
        self._journal.did(f"release anonymous={anonymous}")


class FakeMonitor:
    """A process that does what the test says."""

    def __init__(self, task: Any, journal: Journal) -> None:
        self.task = task
        self.pid: int | None = None
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.signals: list[int] = []
        self.deadly = {9, 15}
        self.on_oom: Callable[[], None] | None = None
        self.attached: list[Any] = []
        self.closed = False
        self._journal = journal

    async def start(self) -> int:
        self._journal.did("monitor_start")
        self.pid = 4242
        return self.pid

    async def kill(self, signal: int) -> None:
        self.signals.append(signal)
        if signal in self.deadly:
            self.end(128 + signal)

    def end(self, code: int, finished_ns: int = 0, *, oom: bool = False) -> None:
        if not self.exit.done():
            self.exit.set_result(Exit(code, oom, finished_ns))

    async def attach(self, sock: Any, **kwargs: Any) -> asyncio.Future[str]:
        self.attached.append((sock, kwargs, self.pid))
        return asyncio.get_running_loop().create_future()

    async def resize(self, height: int, width: int) -> None:
        self._journal.did(f"resize {height}x{width}")

    def close(self) -> None:
        self.closed = True


class FakeLauncher:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.monitors: list[FakeMonitor] = []

    async def spawn(self, task: Any) -> FakeMonitor:
        self._journal.did("spawn")
        monitor = FakeMonitor(task, self._journal)
        self.monitors.append(monitor)
        return monitor


class FakeRuntime:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def launch(self, bundle: Any, *, terminal: bool) -> Any:
        self._journal.did("launch")
        return SimpleNamespace()

    def launch_exec(self, bundle: Any, exec_id: str, process: Any, *, terminal: bool) -> Any:
        return SimpleNamespace()

    def start_error(self, bundle: Any, status: int, text: str) -> EngineError:
        return StartFailed(text, 127)

    def exec_error(self, bundle: Any, arguments: Any, status: int, text: str) -> EngineError:
        return StartFailed(text, 127)

    def delete(self, bundle: Any) -> None:
        self._journal.did("delete_runtime")

    def pause(self, bundle: Any) -> None:
        self._journal.did("pause")

    def resume(self, bundle: Any) -> None:
        self._journal.did("resume")

    def update(self, bundle: Any, resources: Mapping[str, Any]) -> None:
        self._journal.did("update")


class FakePlugins:
    def __init__(self, journal: Journal) -> None:
        self._runtime = FakeRuntime(journal)
        self.hooks = SimpleNamespace(
            engine_container_admit=lambda request: journal.did("admit"),
            engine_oci_spec=lambda container, spec: journal.did("hook"),
            engine_exec_process=lambda container, process, privileged: None,
        )

    def runtime(self, name: str) -> FakeRuntime:
        return self._runtime

    def runtime_name(self, name: str) -> str:
        return name

    def runtime_for(self, platform: object) -> str:
        return "runc"

    def log(self, name: str) -> Any:
        return SimpleNamespace(
            validate=lambda options: None,
            writer=lambda target: None,
            delete=lambda target: None,
            path=lambda target: "",
            capabilities=frozenset(),
        )

    def image_store(self, name: str | None = None) -> Any:
        return SimpleNamespace(graph_data=lambda _: {}, rootfs_usage=lambda _: SimpleNamespace(size=7))


class Clock:
    """Stands in for sleeping: records the delays and wakes the sleepers at once, or when told."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.hold: asyncio.Event | None = None

    async def sleep(self, seconds: float) -> None:
        self.delays.append(seconds)
        if self.hold is not None:
            await self.hold.wait()


@dataclass
class World:
    """A containers service among fakes."""

    root: Path
    journal: Journal = field(default_factory=Journal)
    clock: Clock = field(default_factory=Clock)
    events: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def build(self) -> None:
        self.store = Store(self.root / "state.db")
        self.workers = Workers(4)
        bus = Events(self.store)
        publish = bus.publish

        async def recording(type: str, action: str, actor: str, attributes: Mapping[str, str], **kw: str) -> None:
            self.events.append((action, dict(attributes)))
            await publish(type, action, actor, attributes, **kw)

        bus.publish = recording  # type: ignore[method-assign,assignment]
        self.launcher = FakeLauncher(self.journal)
        self.images = FakeImages(self.journal, self.root)
        self.containers = Containers(
            settings=ContainerSettings(
                root=self.root / "containers",
                state=self.root / "run",
                host=HOST,
                defaults=ocispec.Defaults(cgroup_parent="/test"),
            ),
            workers=self.workers,
            store=self.store,
            events=bus,
            plugins=FakePlugins(self.journal),
            images=self.images,
            networks=FakeNetworks(self.journal),
            volumes=FakeVolumes(self.journal),
            launcher=self.launcher,
            sleep=self.clock.sleep,
        )
        self.execs = Execs(containers=self.containers, launcher=self.launcher)  # type: ignore[arg-type]
        self.containers.load()

    @property
    def monitor(self) -> FakeMonitor:
        return self.launcher.monitors[-1]

    def actions(self) -> list[str]:
        return [action for action, _ in self.events]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.001)

    async def close(self) -> None:
        await self.workers.close()
        await self.store.close()


@asynccontextmanager
async def world(root: Path) -> Any:
    made = World(root)
    made.build()
    try:
        await made.containers.start_service()
        yield made
    finally:
        await made.close()


def launch_failed(text: str) -> LaunchFailed:
    return LaunchFailed(1, text)
