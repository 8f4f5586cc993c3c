"""A headless Chromium for tests, driven by its DevTools protocol over a pipe: no driver, no package.

A Tab records its errors on the console, violations of the Content-Security-Policy, and all requested addresses.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from tests.support.programs import program

WITHIN = 20.0  # seconds
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--no-proxy-server", "--hide-scrollbars", "--host-resolver-rules=MAP *.example 127.0.0.1",
)  # fmt: skip


class Browser:
    """A browser that `with` starts and stops, with its own profile. Names under .example resolve to this machine."""

    def __enter__(self) -> Self:
        chromium = program("chromium", "chromium-browser", "google-chrome")
        self._profile = tempfile.mkdtemp(prefix="queue-browser-")
        theirs, self._to = os.pipe()
        self._from, mine = os.pipe()
        # Chromium reads commands from descriptor 3 and writes to 4. bash: others know no descriptor above 9.
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{mine}', "bash", chromium, *FLAGS, "--remote-debugging-pipe",
             f"--user-data-dir={self._profile}", "about:blank"],
            pass_fds=(theirs, mine), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs)
        os.close(mine)
        self._buffer = b""
        self._number = 0
        self._tabs: dict[str, Tab] = {}
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.command("Browser.close")
            self._process.wait(WITHIN)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._to)
            os.close(self._from)
            shutil.rmtree(self._profile, ignore_errors=True)

    def tab(self, width: int = 1280, height: int = 800, dark: bool = False) -> Tab:
        """Open a new tab in its own context, which shares no state with other tabs."""
        context = self.command("Target.createBrowserContext")["browserContextId"]
        target = self.command("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = self._tabs[session] = Tab(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.command(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.command("Emulation.setEmulatedMedia", features=[scheme])
        tab.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        return tab

    def command(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Run the command and return its result. Raises RuntimeError with Chromium's message."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        whole = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        while whole:
            whole = whole[os.write(self._to, whole) :]
        deadline = time.monotonic() + WITHIN
        while True:
            reply = self._next(deadline)
            if reply.get("id") == self._number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']['message']}")
                result: dict[str, Any] = reply["result"]
                return result

    def _next(self, deadline: float) -> dict[str, Any]:
        """Return the next reply or event; add an event to its tab."""
        while b"\0" not in self._buffer:
            if not select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("Chromium did not answer")
            piece = os.read(self._from, 1 << 20)
            if not piece:
                raise RuntimeError("Chromium has ended")
            self._buffer += piece
        one, _, self._buffer = self._buffer.partition(b"\0")
        event: dict[str, Any] = json.loads(one)
        if event.get("sessionId") in self._tabs and "method" in event:
            self._tabs[event["sessionId"]].note(event["method"], event["params"])
        return event


class Tab:
    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self.faults: list[str] = []  # console errors, uncaught exceptions, policy violations
        self.requests: list[str] = []
        self._browser, self._session, self._target = browser, session, target

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.command(method, self._session, **parameters)

    def open(self, url: str) -> None:
        """Open the page and wait until it is loaded and has run its script."""
        self.command("Page.navigate", url=url)
        self.await_true("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page. Raises AssertionError for an exception."""
        reply = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def await_true(self, script: str) -> None:
        """Wait until the expression is true, at most 20 s."""
        deadline = time.monotonic() + WITHIN
        while not self._is_true(script):
            assert time.monotonic() < deadline, f"not within {WITHIN:g} s: {script}"
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """Wait for an element that is visible and enabled, and click it."""
        node = f"document.querySelector({json.dumps(selector)})"
        self.await_true(f"{node}?.checkVisibility() && !{node}.disabled")
        self.run(f"{node}.click()")

    def choose(self, selector: str, value: str) -> None:
        """Give the field this value, as a user does."""
        node = f"document.querySelector({json.dumps(selector)})"
        self.run(
            f"{node}.value = {json.dumps(value)};"
            f" for (const name of ['input', 'change']) {node}.dispatchEvent(new Event(name, {{bubbles: true}}))"
        )

    def texts(self, selector: str) -> list[str]:
        """Return the texts of the elements."""
        found: list[str] = self.run(
            f"[...document.querySelectorAll({json.dumps(selector)})].map((node) => node.textContent)"
        )
        return found

    def _is_true(self, script: str) -> bool:
        """Evaluate the expression. It is not true while an element is missing.

        It is not true either of a page that is just being left, as by a form that submits.
        """
        boolean = f"Boolean({script})"  # a node itself comes as an empty object
        missing = "if (fault instanceof TypeError && fault.message.includes('of null')) return false; throw fault;"
        try:
            return bool(self.run(f"(() => {{ try {{ return {boolean}; }} catch (fault) {{ {missing} }} }})()"))
        except RuntimeError as fault:
            if "navigated" not in str(fault):
                raise
            return False

    def press(self, key: str, ctrl: bool = False, shift: bool = False) -> None:
        """Press and release a key."""
        text = {"Enter": "\r", " ": " "}.get(key, "") if not ctrl else ""
        event = {
            "key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key],
            "modifiers": 2 * ctrl + 8 * shift,
        }  # fmt: skip
        self.command("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **event)
        self.command("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Type into the focused element."""
        self.command("Input.insertText", text=text)

    def tab_to(self, script: str) -> None:
        """Press Tab until the expression, of the focused element `it`, is true."""
        stops = self.run("document.querySelectorAll('a, button, input, select, summary, textarea').length")
        for _ in range(stops + 1):  # other tests leave one link for each of their queues
            self.press("Tab")
            if self._is_true(f"((it) => {script})(document.activeElement)"):
                return
        raise AssertionError(f"the keyboard does not reach {script}")

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self._browser.command("Target.closeTarget", targetId=self._target)

    def note(self, event: str, parameters: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.faults.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
        elif event == "Runtime.exceptionThrown":
            self.faults.append(json.dumps(parameters["exceptionDetails"].get("exception", {}).get("description")))
        elif event == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.faults.append(json.dumps(parameters["args"]))
