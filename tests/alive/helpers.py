"""What the tests of an open page do and read."""

from __future__ import annotations

from proxyhealth import health

PATH = "/admin/proxyhealth/workspaceproxy/health/"
REFRESH = 5_000  # ms

# Records what is said, and whether the page still works on an answer. The clock of Playwright leaves messages
# alone.
WATCH = """() => {
    window.said = [];
    new MutationObserver((all) => all.forEach((one) => one.addedNodes.forEach((node) =>
        window.said.push(node.textContent.trim().replace(/[\\u2068\\u2069]/g, "")))))
        .observe(document.getElementById("proxyhealth-announcement"), { childList: true });
    const later = () => new Promise((resolve) => {
        const channel = new MessageChannel();
        channel.port1.onmessage = () => { channel.port1.close(); resolve(); };
        channel.port2.postMessage(0);
    });
    const send = window.fetch;
    window.fetch = async (...options) => {
        window.busy = true;
        try {
            const response = await send(...options);
            const read = response.body ? response.clone().text() : Promise.resolve();
            read.then(later).then(later).then(() => { window.busy = false; });
            return response;
        } catch (error) {
            window.busy = false;
            throw error;
        }
    };
}"""


def refresh(page):
    """Let the page refresh itself, and wait until it has done so."""
    with page.expect_response("**/health/*"):
        page.clock.run_for(REFRESH)
    page.wait_for_function("!window.busy")


def names(page):
    return page.locator("tr[data-proxy]").evaluate_all("(rows) => rows.map((row) => row.dataset.proxy)")


def said(page):
    return page.evaluate("window.said")


def fail(server, text="kaputt"):
    server.report = {"errors": [text]}
    health.force_update()
