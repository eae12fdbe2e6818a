// Refreshes the statuses in the list of proxies. Only cells that differ are replaced, so that neither the
// selection of rows nor the focus is lost.
"use strict";
(() => {
  const state = document.getElementById("proxyhealth-refresh");
  const [lost, reload, announcement] = state.children;
  const seconds = Number(state.dataset.seconds);
  let shownSince = new Date();
  let older = 0;

  const cells = (root) => new Map([...root.querySelectorAll("[data-live]")].map((cell) => [cell.dataset.live, cell]));

  // Another web process may have an older snapshot. But a snapshot that stays older is a new one: Redis was emptied.
  function isOlder(fresh) {
    older = Number(fresh.dataset.number) < Number(state.dataset.number) ? older + 1 : 0;
    return older > 0 && older < 3;
  }

  function nameOf(cell) {
    return cell.closest("tr")?.querySelector("[data-name]")?.dataset.name ?? "";
  }

  function update(shown, fresh) {
    const changes = [];
    for (const [key, cell] of shown) {
      const next = fresh.get(key);
      if (!next || next.innerHTML === cell.innerHTML) continue;
      const hadFocus = cell.contains(document.activeElement);
      cell.innerHTML = next.innerHTML;
      if (hadFocus) cell.querySelector("a, summary")?.focus({ preventScroll: true });
      const status = next.dataset.status;
      if (status && status !== cell.dataset.status && key.startsWith("status-")) {
        changes.push(state.dataset.changed.replace("{name}", nameOf(cell)).replace("{status}", status));
        cell.classList.add("proxyhealth-changed");
      }
      if (status !== undefined) cell.dataset.status = status;
    }
    if (changes.length) announcement.textContent = changes.join(" ");
  }

  async function refresh() {
    try {
      const response = await fetch(location.href, {
        cache: "no-store",
        signal: AbortSignal.timeout(seconds * 1000),
      });
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      const next = page.getElementById("proxyhealth-refresh");
      if (!response.ok || !next) throw new Error("not the list");
      shownSince = new Date();
      lost.hidden = true;
      if (isOlder(next)) return;
      state.dataset.number = next.dataset.number;
      const [shown, fresh] = [cells(document), cells(page)];
      reload.hidden = [...fresh.keys()].join() === [...shown.keys()].join();
      update(shown, fresh);
    } catch {
      const time = shownSince.toLocaleTimeString(document.documentElement.lang, { timeZoneName: "short" });
      lost.textContent = lost.dataset.lost.replace("{time}", time);
      lost.hidden = false;
    }
  }

  let timer;
  async function cycle() {
    clearTimeout(timer);
    if (!document.hidden) await refresh();
    clearTimeout(timer);
    timer = setTimeout(cycle, seconds * 1000);
  }
  // Nobody looks at a hidden page. When it is shown again, it must not be out of date.
  document.addEventListener("visibilitychange", () => document.hidden || cycle());
  timer = setTimeout(cycle, seconds * 1000);
})();
