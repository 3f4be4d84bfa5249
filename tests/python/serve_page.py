"""The page in headless Chromium, by keyboard alone, at a desk's and a phone's width: python serve_page.py http://HOST:PORT CHROMIUM [FOLDER]

Chromium is driven over a pipe (its own debugging protocol), so that nothing but the standard library is needed. With FOLDER, what is
seen is saved there.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import time

URL, CHROMIUM = sys.argv[1:3]
FOLDER = sys.argv[3] if len(sys.argv) > 3 else None


class Page:
    def __init__(self, profile):
        to_browser, self.to = os.pipe()
        self.from_, from_browser = os.pipe()
        # The browser reads descriptor 3 and writes 4.
        shell = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        command = ["bash", "-c", shell, CHROMIUM, *flags, "about:blank"]
        quiet = subprocess.DEVNULL
        self.browser = subprocess.Popen(command, pass_fds=(to_browser, from_browser), stdout=quiet, stderr=quiet)
        os.close(to_browser)
        os.close(from_browser)
        self.buffer, self.id, self.session, self.requests, self.complaints = b"", 0, None, [], []
        target = next(t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **params):
        self.id += 1
        message = {"id": self.id, "method": method, "params": params, **({"sessionId": self.session} if self.session else {})}
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                part = os.read(self.from_, 1 << 16)
                assert part, "the browser has gone"
                self.buffer += part
            one, self.buffer = self.buffer.split(b"\0", 1)
            event = json.loads(one)
            if event.get("id") == self.id:
                assert "result" in event, f"{method}: {event}"
                return event["result"]
            self.note(event.get("method"), event.get("params"))

    def note(self, method, params):
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"]["text"])

    def value(self, expression):
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression):
        for _ in range(600):
            if self.value(f"Boolean({expression})"):
                return
            time.sleep(0.05)
        raise AssertionError(f"never: {expression}; it shows {self.value('document.body.innerText')!r}")

    def key(self, key, code, text=None):
        for kind in ("keyDown", "keyUp"):
            pressed = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code}
            self.ask("Input.dispatchKeyEvent", **pressed, **({"text": text} if text and kind == "keyDown" else {}))

    def type(self, text):
        self.ask("Input.insertText", text=text)

    def enter(self):
        self.key("Enter", 13, "\r")

    def see(self, name):
        shot = self.ask("Page.captureScreenshot", format="png")["data"]
        if FOLDER:
            with open(os.path.join(FOLDER, name + ".png"), "wb") as file:
                file.write(base64.b64decode(shot))

    def open(self, width, height, mobile):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.ask("Emulation.setDeviceMetricsOverride", **metrics)
        self.ask("Page.navigate", url=URL + "/")
        self.wait("document.readyState === 'complete' && document.getElementById('model').textContent !== 'moe-run'")

    def focus_by_tab(self, id):
        for _ in range(20):
            if self.value("document.activeElement.id") == id:
                return
            self.key("Tab", 9)
        raise AssertionError(f"no way to {id} by Tab")


def answers(page):
    return page.value("[...document.querySelectorAll('article.assistant > div')].map(d => d.textContent)")


IS_IDLE = "document.getElementById('stop').hidden"

with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    page = Page(profile)
    try:
        for name, width, height, mobile in [("desk", 1280, 800, False), ("phone", 360, 740, True)]:
            page.open(width, height, mobile)
            fits = "document.documentElement.scrollWidth <= window.innerWidth"
            assert page.value(fits), f"{name}: it is wider than its window"
            # Settings by keyboard: greedy, with experts.
            page.value("document.activeElement.blur()")
            page.ask("Runtime.evaluate", expression="document.querySelector('#settings summary').id = 'summary'")
            page.focus_by_tab("summary")
            page.enter()
            page.focus_by_tab("temperature")
            page.type("0")
            page.focus_by_tab("routing")
            page.key(" ", 32, " ")
            assert page.value("document.getElementById('routing').checked")
            assert page.value(fits), f"{name}: its settings are wider than its window"
            page.see(f"{name}-settings")
            page.ask("Runtime.evaluate", expression="document.getElementById('settings').open = false")
            page.focus_by_tab("text")
            page.type("What is 2+2?")
            page.enter()
            page.wait(f"{IS_IDLE} && document.querySelector('article.assistant footer')")
            assert answers(page) == ["2 + 2 = 4"], answers(page)
            footer = page.value("document.querySelector('article.assistant footer').textContent")
            assert "cached" in footer and "tokens/s" in footer, footer
            experts = page.value("document.querySelector('article.assistant details pre').textContent")
            assert experts.count("\n") > 3 and "0: " in experts and " | 1: " in experts, experts
            # The text has the focus again; a long answer is stopped by Escape and stays.
            assert page.value("document.activeElement.id") == "text"
            page.ask("Runtime.evaluate", expression="document.getElementById('temperature').value = '1.5'")
            page.type("Write a long story about the sea and about everything that lives in it.")
            page.enter()
            page.wait("document.querySelectorAll('article.assistant').length === 2 && !document.getElementById('stop').hidden"
                      " || document.querySelectorAll('article.assistant footer').length === 2")
            page.key("Escape", 27)
            page.wait(IS_IDLE)
            assert len(answers(page)) == 2
            assert page.value(fits), f"{name}: a conversation is wider than its window"
            page.see(f"{name}-chat")
            # An error is shown, not swallowed.
            page.ask("Runtime.evaluate", expression="document.getElementById('temperature').value = '9'")
            page.type("Again")
            page.enter()
            page.wait(f"{IS_IDLE} && document.querySelector('article.error')")
            assert "temperature" in page.value("document.querySelector('article.error').textContent")
            page.see(f"{name}-error")
        foreign = [url for url in page.requests if not url.startswith((URL + "/", "data:", "about:"))]
        assert not foreign, f"it asked elsewhere: {foreign}"
        # The browser itself notes the answer of status 400.
        complaints = [text for text in page.complaints if "status of 400" not in text]
        assert not complaints, complaints
    finally:
        page.browser.kill()
print("2 + 2 = 4")
