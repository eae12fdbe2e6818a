// The region picker, as a frontend would build it on /api/v2/regions: what is healthy says the server, how far
// away it is measures the browser, and what the user chose is kept to for as long as it is healthy.
"use strict";
(() => {
  const PATIENCE = 5000; // ms for an answer of the server
  const LATENCY_PATIENCE = 3000; // ms for an answer of a region
  const SAMPLES = 3; // one after the other, each time that a region is measured
  const KEPT = 9; // the median of the last ones is shown, so that the order does not flutter
  const AT_ONCE = 4; // regions that are measured at the same time
  const STORED = "proxyhealth.region";
  const IN_WORDS = {
    unregistered: "It has no URL yet.",
    unknown: "It has not been checked yet, or not at the URL that it has now.",
  };

  const picker = document.getElementById("picker");
  const list = document.getElementById("regions");
  const notice = document.getElementById("notice");
  const connection = document.getElementById("connection");
  const pollEvery = picker.dataset.poll * 1000;
  const measureEvery = picker.dataset.measure * 1000;
  const opened = new Date();

  const regions = new Map(); // by id: what the server said, what was measured, and the row that shows it
  let detailsUrl = picker.dataset.details; // none for who may not see them
  let loaded = false; // whether the server has ever answered
  let upToDate = null; // when what is shown was last known to be so
  let chosen = stored(); // {id, name}, also while that region cannot be used
  let current = null; // the region that one is connected through
  let away = false; // whether that is not the chosen one, because it cannot be used
  let told = ""; // what the sentence about the connection was made of

  function setText(node, text) {
    if (node.textContent !== text) node.textContent = text; // or it would be announced again
  }

  // What the server says

  class Problem extends Error {
    constructor(message, status) {
      super(message);
      this.status = status;
    }
  }

  async function get(url) {
    let response, body;
    try {
      // The browser sends the validators of the answer that it has; an unchanged one is not sent again.
      response = await fetch(url, { cache: "no-cache", signal: AbortSignal.timeout(PATIENCE) });
      body = response.ok ? await response.json() : null;
    } catch (error) {
      if (error.name === "TimeoutError") throw new Problem("the server did not answer in time");
      if (error instanceof SyntaxError) throw new Problem("the server answered with something else");
      throw new Problem("the server cannot be reached");
    }
    if (response.status === 401) throw new Problem("you are not signed in any more", 401);
    if (!response.ok) throw new Problem(`the server answered ${response.status}`, response.status);
    if (!Array.isArray(body?.regions)) throw new Problem("the server answered with something else");
    return { found: body.regions, stale: response.headers.get("Proxyhealth-Stale") === "true" };
  }

  async function getDetails() {
    try {
      if (detailsUrl) return await get(detailsUrl);
    } catch (error) {
      if (error.status !== 403) throw error;
      detailsUrl = ""; // the permission was taken away
    }
    return { found: [], stale: false };
  }

  let polling = false;
  let nextPoll;

  async function poll() {
    if (polling || document.hidden) return;
    polling = true;
    clearTimeout(nextPoll);
    const asked = new Date();
    try {
      const answers = await Promise.allSettled([get(picker.dataset.regions), getDetails()]);
      const [listed, details] = answers.map((answer) => answer.value);
      if (listed) take(listed.found, details?.found ?? []);
      const failed = answers.find((answer) => answer.reason);
      if (failed) throw failed.reason;
      if (listed.stale || details.stale) {
        showOutdated("the control plane itself has no news of its regions");
      } else {
        upToDate = asked;
        notice.hidden = true;
        picker.removeAttribute("data-outdated");
      }
      measureAll();
    } catch (error) {
      showOutdated(error.message, error.status === 401);
      if (!(error instanceof Problem)) throw error;
    } finally {
      polling = false;
      nextPoll = setTimeout(poll, pollEvery);
    }
  }

  function take(found, details) {
    loaded = true;
    const statuses = new Map(details.map((proxy) => [proxy.id, proxy.healthy ? null : proxy.status]));
    const gone = new Set(regions.keys());
    for (const said of found) {
      gone.delete(said.id);
      const region = regions.get(said.id) ?? { row: newRow(said.id) };
      const measured = region.healthy && said.healthy && region.url === said.path_app_url;
      Object.assign(region, measured ? {} : { samples: [], triedAt: 0 }, {
        id: said.id,
        name: said.display_name || said.name,
        icon: said.icon_url,
        url: said.path_app_url,
        healthy: said.healthy === true,
        status: statuses.get(said.id), // for who may see it, and if both answers agree
      });
      regions.set(said.id, region);
    }
    for (const id of gone) regions.delete(id);
    render();
  }

  function showOutdated(why, signIn = false) {
    const time = (upToDate ?? opened).toTimeString().slice(0, 8);
    const since = upToDate ? `since ${time}` : `since before ${time}, when this page was opened`;
    const text = loaded ? `What is shown may be out of date ${since}` : "The regions cannot be loaded";
    setText(notice.firstElementChild, `${text}: ${why}.`);
    notice.querySelector("a").hidden = !signIn;
    notice.hidden = false;
    picker.setAttribute("data-outdated", "");
  }

  // How far away a region is

  const timings = new Map(); // by URL: who waits for its Resource Timing entry
  new PerformanceObserver((entries) => {
    for (const entry of entries.getEntries()) timings.get(entry.name)?.(entry);
  }).observe({ type: "resource" });

  let asked = 0;

  async function sample(base) {
    asked += 1;
    // A query of its own tells its entry from those of other requests.
    const url = `${base.replace(/\/$/, "")}/latency-check?${Date.now().toString(36)}.${asked}`;
    const timing = new Promise((resolve) => timings.set(url, resolve));
    try {
      const begin = performance.now();
      const response = await fetch(url, {
        cache: "no-store",
        credentials: "omit",
        signal: AbortSignal.timeout(LATENCY_PATIENCE),
      });
      await response.arrayBuffer();
      const whole = performance.now() - begin;
      if (!response.ok) throw new Problem(`the region answered ${response.status}`);
      const entry = await Promise.race([timing, new Promise((resolve) => setTimeout(resolve, 500))]);
      // Without Timing-Allow-Origin the parts are zero, and connecting is part of the whole.
      return entry?.requestStart ? entry.responseStart - entry.requestStart : (entry?.duration ?? whole);
    } finally {
      timings.delete(url);
    }
  }

  async function measure(region) {
    const { url } = region;
    const samples = [];
    let failed = false;
    while (samples.length < SAMPLES && !failed) {
      try {
        samples.push(await sample(url));
      } catch {
        failed = true;
      }
    }
    // A hidden tab has too little time to measure anything, and a region may have moved or died meanwhile.
    if (document.hidden || region.url !== url || !region.healthy) return;
    region.triedAt = Date.now();
    region.samples = failed ? [] : [...region.samples, ...samples].slice(-KEPT);
    render();
  }

  let measuring = false;

  async function measureAll() {
    if (measuring) return;
    measuring = true;
    const due = [...regions.values()].filter((r) => r.healthy && Date.now() - r.triedAt >= measureEvery);
    const work = async () => {
      while (due.length && !document.hidden) await measure(due.shift());
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    measuring = false;
  }

  function latency(region) {
    const sorted = [...region.samples].sort((a, b) => a - b);
    return sorted.length ? sorted[Math.floor(sorted.length / 2)] : Infinity;
  }

  // Which region it is

  function stored() {
    try {
      const { id, name } = JSON.parse(localStorage.getItem(STORED));
      return { id: String(id), name: String(name) };
    } catch {
      return null; // nothing was chosen, or this browser keeps nothing
    }
  }

  function choose(region) {
    chosen = { id: region.id, name: region.name };
    away = false;
    try {
      localStorage.setItem(STORED, JSON.stringify(chosen));
    } catch {
      // It holds as long as the page, then.
    }
    render();
  }

  function compare(a, b) {
    const [near, far] = [latency(a), latency(b)];
    if (a.healthy !== b.healthy) return a.healthy ? -1 : 1;
    return near === far ? a.name.localeCompare(b.name) : near - far;
  }

  function connect(sorted) {
    const usable = sorted.filter((region) => region.healthy);
    const wanted = usable.find((region) => region.id === chosen?.id);
    const kept = usable.find((region) => region === current);
    // Which one is the nearest is known when all have been asked. Who has lost a region takes the first that answers.
    const lostOne = current || chosen;
    const asking = usable.some((r) => !r.triedAt) && !(lostOne && usable.some((r) => r.samples.length));
    // Who was moved is not moved again because something is nearer now.
    const next = wanted ?? kept ?? (asking ? null : (usable[0] ?? null));

    const name = regions.get(chosen?.id)?.name ?? chosen?.name;
    const lost = current && !kept ? current.name : chosen && !wanted ? name : "";
    const back = wanted && away;
    const now = current || back ? "now " : "";
    away = Boolean(chosen && !wanted);
    if (!asking || next) current = next; // one that was lost is named until there is another
    const facts = [regions.size > 0, usable.length > 0, next?.id, wanted?.id, chosen?.id].join();
    if (facts === told) return;
    told = facts;

    const where = next && `You are ${now}connected through ${next.name}`;
    let state = "connected";
    let text;
    if (!usable.length) {
      state = "none";
      text = `${regions.size ? "No region is available." : "There are no regions."} You are not connected.`;
    } else if (!next) {
      state = "looking";
      text = `${lost ? `${lost} is not available. ` : ""}Looking for the nearest region…`;
    } else if (wanted) {
      text = `${back ? `${name} is available again. ` : ""}${where}.`;
    } else if (lost) {
      state = "fallback";
      text = `${lost} is not available. You are now connected through ${next.name}.`;
    } else {
      text = `${where}, the nearest region. Choose one to stay with it.`;
    }
    setText(connection, text);
    connection.dataset.state = state;
  }

  // The rows

  function newRow(id) {
    const element = document.getElementById("region").content.firstElementChild.cloneNode(true);
    const find = (selector) => element.querySelector(selector);
    const row = {
      element,
      radio: find("input"),
      icon: find("img"),
      name: find("label"),
      tag: find(".tag"),
      badge: find(".proxyhealth-badge"),
      latency: find(".latency"),
      reason: find(".reason"),
    };
    row.radio.id = row.name.htmlFor = `region-${id}`;
    find(".facts").id = `facts-${id}`;
    row.reason.id = `reason-${id}`;
    row.radio.setAttribute("aria-describedby", `facts-${id} reason-${id}`);
    row.radio.addEventListener("change", () => choose(regions.get(id)));
    row.icon.addEventListener("load", () => (row.icon.hidden = false));
    row.icon.addEventListener("error", () => (row.icon.hidden = true));
    return row;
  }

  function show(region) {
    const { row, healthy, status } = region;
    const isChosen = region.id === chosen?.id;
    row.radio.disabled = !healthy;
    row.radio.checked = healthy && isChosen;
    setText(row.name, region.name);
    showIcon(row.icon, region.icon);

    const tag = healthy ? (region === current ? "connected" : "") : isChosen ? "your choice" : "";
    setText(row.tag, tag);
    row.tag.hidden = !tag;

    const looks = healthy ? "ok" : (status?.status ?? "unregistered");
    row.badge.className = `proxyhealth-badge proxyhealth-${looks}`;
    setText(row.badge, healthy ? "available" : (status?.status ?? "not available"));

    const ms = Math.round(latency(region));
    const measured = region.samples.length ? `${ms || "< 1"} ms` : region.triedAt ? "no answer" : "measuring…";
    setText(row.latency, healthy ? measured : "");

    const [code, why] = row.reason.children;
    setText(code, status?.reason ?? "");
    const general = "It can be chosen as soon as it is available again.";
    setText(why, status ? (status.report.errors[0] ?? IN_WORDS[status.status] ?? "") : general);
    row.reason.hidden = healthy;
  }

  function showIcon(img, url) {
    const usable = /^(https?:\/)?\//i.test(url) ? url : "";
    if (img.getAttribute("src") === (usable || null)) return;
    img.hidden = true; // until it is there
    if (usable) img.src = usable;
    else img.removeAttribute("src");
  }

  let pointerInside = false;

  function arrange(rows) {
    const wanted = new Set(rows);
    for (const row of [...list.children]) if (!wanted.has(row)) row.remove();
    if (pointerInside) {
      list.append(...rows.filter((row) => !row.isConnected));
    } else if (rows.some((row, i) => row !== list.children[i])) {
      // What is moved loses the focus, so the others are moved around the row that has it.
      const fixed = rows.findIndex((row) => row.contains(document.activeElement));
      rows.forEach((row, i) => {
        if (i < fixed) rows[fixed].before(row);
        else if (i > fixed) list.append(row);
      });
    }
  }

  function render() {
    const sorted = [...regions.values()].sort(compare);
    const focused = list.contains(document.activeElement) ? document.activeElement : null;
    connect(sorted);
    sorted.forEach(show);
    arrange(sorted.map((region) => region.row.element));
    list.parentElement.hidden = !sorted.length;
    if (focused && (focused.disabled || !focused.isConnected)) {
      const next = current?.healthy ? current.row.radio : connection;
      next.focus({ preventScroll: true });
    }
  }

  list.addEventListener("pointerenter", () => (pointerInside = true));
  list.addEventListener("pointerleave", () => {
    pointerInside = false;
    render();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    // It is grey until it is known what has happened meanwhile.
    if (loaded && Date.now() - upToDate > 2 * pollEvery) picker.setAttribute("data-outdated", "");
    poll();
  });
  addEventListener("online", poll);
  addEventListener("offline", poll);
  addEventListener("storage", (event) => {
    if (event.key !== STORED && event.key !== null) return;
    chosen = stored(); // in another tab
    away = false;
    if (loaded) render();
  });

  picker.hidden = false;
  poll();
})();
