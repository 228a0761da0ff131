from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import kernel
from engine.errors import Conflict, InvalidParameter, NotFound
from engine.events import Events
from engine.model.container import (
    BindOptions,
    Config,
    Container,
    HostConfig,
    Mount,
    TmpfsOptions,
    VolumeDriverConfig,
    VolumeOptions,
)
from engine.model.filters import Filters
from engine.mounts import OciMount
from engine.store import Store
from engine.testing.fakes import FakeVolumes
from engine.volumes import Volumes
from engine.workers import Workers


class Plugins:
    """What volumes ask of the plugin host; nobody has a say in who makes them."""

    def __init__(self, drivers):
        self.drivers = drivers
        self.hooks = SimpleNamespace(engine_volume_admit=lambda **asked: [])

    def names(self, kind):
        assert kind == "volume"
        return list(self.drivers)

    def volume(self, name):
        try:
            return self.drivers[name]
        except KeyError:
            raise NotFound(f'plugin "{name}" not found') from None


class Images:
    """Root file systems that are nothing but keys; ``mounted`` are those that are up."""

    def __init__(self, root):
        self.root, self.roots, self.mounted = root, [], set()

    def get(self, reference, platform=None):
        raise NotFound(f"No such image: {reference}:latest")

    def rootfs_ids(self):
        return self.roots


class World:
    """One engine's volumes with fakes below; ``told`` are the events so far."""

    def __init__(self, tmp_path, drivers, store, workers):
        self.plugins = Plugins(drivers)
        self.workers = workers
        self.events = Events(store)
        self.told = []
        publish = self.events.publish

        async def record(type, action, actor, attributes, *, scope="local"):
            self.told.append((action, actor, dict(attributes)))
            await publish(type, action, actor, attributes, scope=scope)

        self.events.publish = record
        self.volumes = Volumes(
            store=store,
            events=self.events,
            workers=workers,
            plugins=self.plugins,
            state=tmp_path / "state" / "volumes",
            data_root=Path("/nowhere/engine"),
        )
        self.volumes.images = Images(tmp_path / "roots")
        self.containers = {}
        self.volumes.users = lambda name: [
            each.id for each in self.containers.values() if any(point.name == name for point in each.mounts)
        ]

    async def container(self, name="c1", config=None, **host_config):
        config, host_config = config or Config(), HostConfig(**host_config)
        points = await self.volumes.resolve(name, config, host_config, self.containers.__getitem__)
        self.containers[name] = Container(
            id=name, name=f"/{name}", created="", image_id="", chain_id=None, platform="", runtime="", store="",
            log_driver="", path="", args=[], config=config, host_config=host_config, mounts=list(points),
        )  # fmt: skip
        return self.containers[name]


@pytest.fixture
def world(tmp_path, driver_context):
    @asynccontextmanager
    async def build(drivers=None):
        store, workers = Store(tmp_path / "engine.db"), Workers(threads=2)
        drivers = {"local": FakeVolumes(driver_context("local"))} if drivers is None else drivers
        made = World(tmp_path, drivers, store, workers)
        await made.volumes.start()
        try:
            yield made
        finally:
            await workers.close()
            await store.close()

    return build


def run(scenario):
    asyncio.run(scenario())


def rootfs_of(tmp_path):
    (tmp_path / "rootfs" / "data").mkdir(parents=True)
    (tmp_path / "rootfs" / "data" / "file").write_text("from the image")
    return tmp_path / "rootfs"


def plain(mount):
    """Without what the file system of the tests happens to forbid."""
    return replace(mount, options=tuple(each for each in mount.options if each not in ("nosuid", "nodev", "noexec")))


def test_creating_is_idempotent_and_told_once(world):
    async def scenario():
        async with world() as w:
            first = await w.volumes.create("v", labels={"a": "b"})
            assert await w.volumes.create("v") == first
            assert await w.volumes.create("v", driver="local") == first
            assert w.told == [("create", "v", {"driver": "local"})]
            assert (first.labels, first.options, first.scope) == ({"a": "b"}, None, "local")

    run(scenario)


def test_a_name_belongs_to_one_driver(world, driver_context):
    async def scenario():
        local = FakeVolumes(driver_context("local"))
        async with world({"local": local, "other": local}) as w:
            await w.volumes.create("v")
            with pytest.raises(Conflict) as error:
                await w.volumes.create("v", driver="other")
            assert str(error.value) == "create v: driver 'local' already has volume 'v': volume name must be unique"

    run(scenario)


def test_unknown_drivers_and_bad_options_are_refused_and_leave_nothing(world):
    async def scenario():
        async with world() as w:
            with pytest.raises(NotFound, match='create v: error looking up volume plugin nosuch: plugin "nosuch"'):
                await w.volumes.create("v", driver="nosuch")
            with pytest.raises(InvalidParameter, match="create v: invalid option: 'x'"):
                await w.volumes.create("v", options={"x": "y"})
            assert w.volumes.list(Filters()) == []

    run(scenario)


def test_what_is_missing_is_missing_in_dockers_words(world):
    async def scenario():
        async with world() as w:
            for call in (w.volumes.inspect("nosuch"), w.volumes.remove("nosuch")):
                with pytest.raises(NotFound) as error:
                    await call
                assert str(error.value) == "get nosuch: no such volume"
            await w.volumes.remove("nosuch", force=True)

    run(scenario)


def test_a_volume_in_use_stays(world):
    async def scenario():
        async with world() as w:
            container = await w.container(binds=["v:/data"])
            with pytest.raises(Conflict) as error:
                await w.volumes.remove("v")
            assert str(error.value) == "remove v: volume is in use - [c1]"
            del w.containers["c1"]
            with pytest.raises(Conflict):  # still reserved: the container is only just being removed
                await w.volumes.remove("v")
            await w.volumes.release(container, anonymous=True)
            await w.volumes.remove("v")
            assert w.told[-1] == ("destroy", "v", {"driver": "local"})

    run(scenario)


def test_records_and_data_are_compared_at_start(world, driver_context):
    async def scenario():
        driver = FakeVolumes(driver_context("local"))
        anonymous = "ab" * 32
        async with world({"local": driver}) as w:
            await w.volumes.create("kept", labels={"a": "b"})
            await w.volumes.create("lost")
        driver.remove("lost")
        driver.create("found", {})
        driver.create(anonymous, {})
        async with world({"local": driver}) as w:
            assert [record.name for record in w.volumes.list(Filters())] == [anonymous, "found", "kept"]
            assert w.volumes.get("kept").labels == {"a": "b"}
            assert w.volumes.get(anonymous).labels == {"com.docker.volume.anonymous": ""}

    run(scenario)


def test_a_volume_whose_driver_went_away_is_still_listed_and_can_be_forced_out(world, driver_context):
    async def scenario():
        other = FakeVolumes(driver_context("other"))
        async with world({"local": other, "other": other}) as w:
            await w.volumes.create("v", driver="other")
        async with world({}) as w:
            assert (await w.volumes.inspect("v"))["Driver"] == "other"
            with pytest.raises(NotFound, match='remove v: plugin "other" not found'):
                await w.volumes.remove("v")
            await w.volumes.remove("v", force=True)
            assert w.volumes.list(Filters()) == []

    run(scenario)


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, ["one", "two"]),
        ({"name": ["ne"]}, ["one"]),
        ({"label": ["kind=x"]}, ["two"]),
        ({"driver": ["local"]}, ["one", "two"]),
        ({"driver": ["nfs"]}, []),
        ({"dangling": ["true"]}, ["two"]),
        ({"dangling": ["0"]}, ["one"]),
    ],
)
def test_listing_filters(world, filters, names):
    async def scenario():
        async with world() as w:
            await w.container(binds=["one:/data"])
            await w.volumes.create("two", labels={"kind": "x"})
            assert [record.name for record in w.volumes.list(Filters(filters))] == names

    run(scenario)


def test_an_unknown_filter_is_refused(world):
    async def scenario():
        async with world() as w:
            with pytest.raises(InvalidParameter, match="invalid filter 'odd'"):
                w.volumes.list(Filters({"odd": ["1"]}))

    run(scenario)


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ({}, {"named", "used"}),
        ({"all": ["true"]}, {"used"}),
        ({"label": ["keep"]}, {"named", "used", "anonymous"}),
        ({"all": ["1"], "label!": ["keep"]}, {"named", "used"}),
    ],
)
def test_pruning_takes_unused_anonymous_volumes_unless_told_more(world, filters, left):
    async def scenario():
        async with world() as w:
            anonymous = (await w.volumes.create()).name
            await w.volumes.create("named", labels={"keep": ""})
            await w.container(binds=["used:/data"])
            report = await w.volumes.prune(Filters(filters))
            names = {record.name for record in w.volumes.list(Filters())}
            assert {"anonymous" if name == anonymous else name for name in names} == left
            assert len(report["VolumesDeleted"]) == 3 - len(left)
            assert w.told[-1][0] == "prune"

    run(scenario)


# -- containers ---------------------------------------------------------------------------------------------


def test_everything_a_container_mounts_is_resolved(world, tmp_path):
    async def scenario():
        async with world() as w:
            config = Config(volumes={"/image": {}, "/bound": {}, "/scratch": {}})
            container = await w.container(
                config=config,
                binds=["named:/named:ro", f"{tmp_path}:/bound:ro"],
                mounts=[
                    Mount(
                        type="volume", source="big", target="/big",
                        volume_options=VolumeOptions(labels={"a": "b"}, driver_config=VolumeDriverConfig(name="local")),
                    ),
                    Mount(type="volume", target="/anonymous"),
                    Mount(type="tmpfs", target="/tmpfs", tmpfs_options=TmpfsOptions(size_bytes=1 << 20)),
                ],
                tmpfs={"/scratch": ""},
            )  # fmt: skip
            points = {point.destination: point for point in container.mounts}
            assert list(points) == ["/named", "/bound", "/big", "/anonymous", "/tmpfs", "/image"]
            named = points["/named"]
            assert (named.type, named.name, named.driver, named.mode, named.rw) == (
                "volume", "named", "local", "ro", False,
            )  # fmt: skip
            assert named.source == w.volumes.get("named").mountpoint
            bound = points["/bound"]
            assert (bound.type, bound.source, bound.mode, bound.propagation) == (
                "bind", str(tmp_path), "ro", "rprivate",
            )  # fmt: skip
            assert points["/big"].mode == points["/anonymous"].mode == "z"
            assert w.volumes.get("big").labels == {"a": "b"}
            for path in ("/anonymous", "/image"):
                assert len(points[path].name) == 64
                assert w.volumes.get(points[path].name).labels == {"com.docker.volume.anonymous": ""}
            assert points["/image"].mode == ""

    run(scenario)


@pytest.mark.parametrize(
    "host_config",
    [
        {"binds": ["a:/x", "b:/x/"]},
        {"binds": ["a:/x"], "mounts": [Mount(type="volume", source="b", target="/x")]},
        {"binds": ["a:/x"], "tmpfs": {"/x": ""}},
    ],
)
def test_two_mounts_cannot_share_a_place(world, host_config):
    async def scenario():
        async with world() as w:
            with pytest.raises(InvalidParameter, match="Duplicate mount point: /x"):
                await w.container(**host_config)
            assert w.volumes.list(Filters()) == []

    run(scenario)


def test_a_create_that_fails_half_way_leaves_no_volume_it_made(world):
    async def scenario():
        async with world() as w:
            await w.volumes.create("old")
            with pytest.raises(InvalidParameter, match="error looking up volume plugin nosuch"):
                await w.container(
                    binds=["old:/old", "new:/new"],
                    mounts=[
                        Mount(
                            type="volume", source="z", target="/z",
                            volume_options=VolumeOptions(driver_config=VolumeDriverConfig(name="nosuch")),
                        )
                    ],
                )  # fmt: skip
            assert [record.name for record in w.volumes.list(Filters())] == ["old"]

    run(scenario)


def test_volumes_from_brings_another_containers_mounts(world, tmp_path):
    async def scenario():
        async with world() as w:
            donor = await w.container("donor", Config(volumes={"/data": {}}), binds=[f"{tmp_path}:/b:ro"])
            taker = await w.container("taker", volumes_from=["donor:ro"], binds=["mine:/b"])
            points = {point.destination: point for point in taker.mounts}
            assert points["/data"].name == donor.mounts[1].name
            assert not points["/data"].rw
            assert points["/b"].name == "mine"
            # The donor goes with its anonymous volume, which the taker still uses.
            del w.containers["donor"]
            await w.volumes.release(donor, anonymous=True)
            assert w.volumes.get(points["/data"].name)
            del w.containers["taker"]
            await w.volumes.release(taker, anonymous=True)
            assert [record.name for record in w.volumes.list(Filters())] == ["mine"]

    run(scenario)


def test_mounting_fills_an_empty_volume_once_and_tells(world, tmp_path):
    async def scenario():
        async with world() as w:
            rootfs = rootfs_of(tmp_path)
            container = await w.container(binds=["v:/data:ro"])
            assert w.volumes.may_need_content(container)
            await w.volumes.populate(container, rootfs)
            assert w.plugins.volume("local").mounts == set()
            (mount,) = await w.volumes.mount(container)
            source = w.volumes.get("v").mountpoint
            assert plain(mount) == OciMount("/data", "bind", source, ("rbind", "rro"))
            assert (tmp_path / "root" / "v" / "file").read_text() == "from the image"
            assert w.plugins.volume("local").mounts == {("v", "c1")}
            assert w.told[-1] == (
                "mount", "v",
                {
                    "container": "c1", "destination": "/data", "driver": "local", "propagation": "",
                    "read/write": "false",
                },
            )  # fmt: skip
            await w.volumes.unmount(container)
            assert w.plugins.volume("local").mounts == set()
            assert w.told[-1] == ("unmount", "v", {"container": "c1", "driver": "local"})
            before = len(w.told)
            await w.volumes.unmount(container)
            assert len(w.told) == before
            # The user emptied it: a restart does not bring the image's files back.
            (tmp_path / "root" / "v" / "file").unlink()
            await w.volumes.mount(container)
            assert list((tmp_path / "root" / "v").iterdir()) == []

    run(scenario)


def test_nocopy_leaves_a_volume_empty(world, tmp_path):
    async def scenario():
        async with world() as w:
            container = await w.container(binds=["v:/data:nocopy"])
            assert not w.volumes.may_need_content(container)
            await w.volumes.populate(container, rootfs_of(tmp_path))
            assert list((tmp_path / "root" / "v").iterdir()) == []

    run(scenario)


def test_the_missing_source_of_a_v_flag_is_made_and_that_of_a_mount_is_not(world, tmp_path):
    async def scenario():
        async with world() as w:
            made = await w.container("made", binds=[f"{tmp_path}/new/dir:/x"])
            (mount,) = await w.volumes.mount(made)
            assert (tmp_path / "new" / "dir").is_dir()
            assert plain(mount) == OciMount("/x", "bind", f"{tmp_path}/new/dir", ("rbind", "rprivate"))
            source = tmp_path / "there"
            source.mkdir()
            options = BindOptions(non_recursive=True)
            gone = await w.container(
                "gone", mounts=[Mount(type="bind", source=str(source), target="/x", bind_options=options)]
            )
            assert plain((await w.volumes.mount(gone))[0]).options == ("bind", "private")
            source.rmdir()
            with pytest.raises(InvalidParameter, match=f"bind source path does not exist: {source}"):
                await w.volumes.mount(gone)

    run(scenario)


def test_a_bind_around_the_engines_data_follows_its_unmounts_unless_told_otherwise(world):
    async def scenario():
        async with world() as w:
            container = await w.container(binds=["/:/host", "/:/private:private"])
            assert [point.propagation for point in container.mounts] == ["rslave", "private"]

    run(scenario)


def test_a_missing_donor_is_no_missing_image(world):
    async def scenario():
        def others(reference):
            raise NotFound(f"No such container: {reference}")

        async with world() as w:
            with pytest.raises(InvalidParameter, match="No such container: nosuch"):
                await w.volumes.resolve("c1", Config(), HostConfig(volumes_from=["nosuch"]), others)

    run(scenario)


@pytest.mark.root
@pytest.mark.usefixtures("no_leaks")
def test_what_the_mount_of_a_source_forbids_stays_forbidden(world, tmp_path):
    (tmp_path / "strict").mkdir()
    kernel.mount("tmpfs", tmp_path / "strict", "tmpfs", kernel.MS_NOEXEC | kernel.MS_NOSUID | kernel.MS_RDONLY)

    async def scenario():
        async with world() as w:
            container = await w.container(binds=[f"{tmp_path}/strict:/x"])
            (mount,) = await w.volumes.mount(container)
            assert mount.options == ("rbind", "nosuid", "noexec", "ro", "rprivate")

    try:
        run(scenario)
    finally:
        kernel.umount(tmp_path / "strict")


@pytest.mark.root
@pytest.mark.usefixtures("no_leaks")
def test_a_subpath_is_pinned_and_cannot_lead_out(world, tmp_path):
    async def scenario():
        async with world() as w:
            await w.volumes.create("v")
            volume = tmp_path / "root" / "v"
            (volume / "sub" / "deep").mkdir(parents=True)
            (volume / "evil").symlink_to("/etc")

            def mount(subpath):
                options = VolumeOptions(subpath=subpath)
                return Mount(type="volume", source="v", target="/x", volume_options=options)

            good = await w.container("good", mounts=[mount("sub/deep")])
            (mounted,) = await w.volumes.mount(good)
            assert mounted.source == str(tmp_path / "state" / "volumes" / "good" / "0")
            (volume / "sub" / "deep" / "file").touch()
            (volume / "sub").rename(volume / "moved")
            assert (tmp_path / "state" / "volumes" / "good" / "0" / "file").exists()
            await w.volumes.unmount(good)
            await w.volumes.unmount(good)
            for name, subpath in (("evil", "evil"), ("none", "none")):
                bad = await w.container(name, mounts=[mount(subpath)])
                with pytest.raises(InvalidParameter, match=r"cannot access path .*: no such file or directory"):
                    await w.volumes.mount(bad)
                await w.volumes.unmount(bad)

    run(scenario)
