"""``tidelog cluster up``: a local cluster in the foreground, from its start to its exit code."""

from __future__ import annotations

import asyncio
import os
import sys
from importlib.metadata import version

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from runtime.clock import Clock
from runtime.tasks import Supervisor
from tidelog.client import counted, show_table
from tidelog.cluster.local import ClusterFailed, LocalCluster, without_password
from tidelog.cluster.plan import METADATA_PROCESSES, TLS_GROUP, ClusterSpec, PlanError
from tidelog.cluster.state_file import FolderInUse, lock_folder
from tidelog.serve import FAILED, INTERRUPTED, STOPPED, WRONG_SETTING, StopSignals

PROGRESS_SECONDS = 0.1
NAMES_SHOWN = 4


def run(spec: ClusterSpec, clock: Clock) -> int:
    """Serve until SIGTERM or Ctrl-C, then stop in order; the exit code. A second signal kills everything."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    try:
        spec.data.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(spec.data)
    except (FolderInUse, OSError) as error:
        console.print(f"tidelog: --data {spec.data}: {error}")
        return WRONG_SETTING
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_Up(spec, clock, console).run())
    finally:
        os.close(lock)


class _Up:
    def __init__(self, spec: ClusterSpec, clock: Clock, console: Console) -> None:
        self._spec = spec
        self._clock = clock
        self._console = console
        self._began = clock.monotonic()
        self._broken: list[str] = []
        self._named: set[str] = set()

    async def run(self) -> int:
        signals = StopSignals()
        signals.install()

        def failed(task: str, error: BaseException) -> None:
            self._broken.append(f"{task}: {error!r}")
            signals.stopping.set()

        supervisor = Supervisor(failed)
        try:
            cluster = LocalCluster(self._spec, self._clock, supervisor, self._say)
        except PlanError as error:
            self._say(f"tidelog: {error}")
            return WRONG_SETTING
        try:
            return await self._live(cluster, signals, supervisor)
        except asyncio.CancelledError:
            self._say("stopped without draining")
            return INTERRUPTED
        finally:
            signals.ignore()
            cluster.kill()
            await cluster.stop()
            await supervisor.stop()

    async def _live(self, cluster: LocalCluster, signals: StopSignals, supervisor: Supervisor) -> int:
        stopping = supervisor.start("cluster-stopping", signals.stopping.wait())
        starting = supervisor.start("cluster-start", self._start(cluster, supervisor))
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        code = STOPPED
        if starting.done() and not starting.cancelled() and starting.exception() is None:
            code = starting.result()
            if code == STOPPED:
                self._print_banner(cluster)
                await stopping
        else:
            starting.cancel()
            await asyncio.wait((starting,))
        self._say("stopping: agents drain first, then the metadata processes")
        problems = self._broken + await cluster.stop()
        for problem in problems:
            self._say(problem)
        if not problems and code == STOPPED:
            self._say("every process has drained and ended")
        return code or (FAILED if problems else STOPPED)

    async def _start(self, cluster: LocalCluster, supervisor: Supervisor) -> int:
        """0 when everything is ready, else the exit code of the process."""
        progress = supervisor.start("cluster-progress", self._show_progress(cluster))
        try:
            await cluster.start()
        except PlanError as error:
            self._say(f"tidelog: {error}")
            return WRONG_SETTING
        except ClusterFailed as error:
            self._say(f"tidelog: the cluster cannot be started: {error}")
            return WRONG_SETTING if error.is_setting else FAILED
        finally:
            progress.cancel()
            await asyncio.wait((progress,))
        self._say_who_is_ready(cluster)
        return STOPPED

    async def _show_progress(self, cluster: LocalCluster) -> None:
        """A bar on a terminal, elsewhere a line for each process, until cancelled."""
        spec = self._spec
        total = METADATA_PROCESSES + len(spec.zones) * len(spec.groups) * spec.agents_per_zone
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bar:
            task = bar.add_task("starting", total=total)
            while True:
                ready = [member.name for member in cluster.members if member.was_ready]
                waiting = [member.name for member in cluster.members if not member.was_ready]
                self._say_who_is_ready(cluster)
                more = f" and {len(waiting) - NAMES_SHOWN} more" if len(waiting) > NAMES_SHOWN else ""
                bar.update(
                    task, completed=len(ready), description=f"waiting for {', '.join(waiting[:NAMES_SHOWN])}{more}"
                )
                await self._clock.sleep(PROGRESS_SECONDS)

    def _say_who_is_ready(self, cluster: LocalCluster) -> None:
        """A line for each process that was not named yet, where there is no bar."""
        for member in cluster.members:
            if member.was_ready and member.name not in self._named and not self._console.is_terminal:
                self._named.add(member.name)
                self._say(f"{member.name} is ready")

    def _say(self, line: str) -> None:
        self._console.print(f"{self._clock.monotonic() - self._began:6.1f} s  {line}")

    def _print_banner(self, cluster: LocalCluster) -> None:
        spec, agents = self._spec, cluster.agents
        self._console.print(
            f"Tidelog {version('tidelog')} cluster is ready after {self._clock.monotonic() - self._began:.1f} s: "
            f"{counted(len(spec.zones), 'zone')}, {counted(len(spec.groups), 'group')}, "
            f"{counted(len(agents), 'agent')}, {METADATA_PROCESSES} metadata processes\n\nBootstrap addresses:"
        )
        addresses = {
            group: [
                ",".join(agent.kafka for agent in agents if (agent.zone, agent.group) == (zone, group))
                for zone in spec.zones
            ]
            for group in spec.groups
        }
        show_table(("group", *(f"zone {zone}" for zone in spec.zones)), ([g, *a] for g, a in addresses.items()))
        first = addresses[spec.groups[0]][0]
        lines = [
            "",
            f"  metadata  {','.join(cluster.metadata_urls)}  ({without_password(spec.metadata_store_url())})",
            f"  storage   {spec.storage_url()}",
            f"  logs      {spec.logs}, one file for each process",
        ]
        if cluster.ca is not None:
            lines.append(f"  TLS       clients of the group {TLS_GROUP!r} trust {cluster.ca.ca}")
        lines += [
            "",
            "Try, in another terminal:",
            f"  tidelog cluster status --data {spec.data} --watch",
            f"  tidelog topic create logs --partitions 6 --bootstrap {first}",
            f"  echo hello | tidelog produce logs --bootstrap {first}",
            f"  tidelog consume logs --from-beginning --bootstrap {addresses[spec.groups[0]][-1]}",
            f"  kill -9 $(jq '.metadata[0].pid' {spec.data / 'cluster.json'})   # it is started again, nothing is lost",
            f"Give clients the addresses of all zones, and those in {spec.zones[0]} client.id zone={spec.zones[0]}.",
            "Ctrl-C drains and stops everything.",
        ]
        self._console.print("\n".join(lines))
        sys.stdout.flush()
