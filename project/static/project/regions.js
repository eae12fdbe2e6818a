// The region picker, an example of a frontend for /api/v2/regions. The server says which regions are healthy, and
// the browser measures the latency. The region that the user chose is used as long as it is healthy.
"use strict";
(() => {
  const SERVER_TIMEOUT = 5000; // ms
  const REGION_TIMEOUT = 3000; // ms
  const SAMPLES = 3; // per measurement of a region, one after the other
  const MAX_SAMPLES = 9; // kept per region; their median is shown, so that the order is stable
  const CONCURRENCY = 4; // regions that are measured at the same time
  const STORAGE_KEY = "proxyhealth.region";
  const STATUS_TEXTS = {
    unregistered: "This region has no URL yet.",
    unknown: "This region has not been checked yet at its current URL.",
  };

  const picker = document.getElementById("picker");
  const list = document.getElementById("regions");
  const notice = document.getElementById("notice");
  const connection = document.getElementById("connection");
  const pollEvery = picker.dataset.poll * 1000;
  const measureEvery = picker.dataset.measure * 1000;
  const openedAt = new Date();

  const regions = new Map(); // by id: the server's data, the measured samples, and the row
  let detailsUrl = picker.dataset.details; // empty if the user may not see the details
  let loaded = false; // true after the first list of regions
  let updatedAt = null; // the time of the last successful poll
  let chosen = loadChoice(); // {id, name}; kept while that region is not available
  let current = null; // the region of the connection
  let isFallback = false; // true while the chosen region is not available
  let lastFacts = ""; // the facts behind the sentence about the connection

  function setText(node, text) {
    // Screen readers announce every change of a live region, even one to the same text.
    if (node.textContent !== text) node.textContent = text;
  }

  // The server's data

  class RequestError extends Error {
    constructor(message, status) {
      super(message);
      this.status = status;
    }
  }

  async function get(url) {
    let response, body;
    try {
      // With "no-cache", the request is conditional: the server does not send an unchanged body again.
      response = await fetch(url, { cache: "no-cache", signal: AbortSignal.timeout(SERVER_TIMEOUT) });
      body = response.ok ? await response.json() : null;
    } catch (error) {
      if (error.name === "TimeoutError") throw new RequestError("the server did not respond in time");
      if (error instanceof SyntaxError) throw new RequestError("the server sent an unexpected response");
      throw new RequestError("the server cannot be reached");
    }
    const { status } = response;
    if (status === 401) throw new RequestError("you are no longer signed in", status);
    if (!response.ok) throw new RequestError(`the server responded with status ${status}`, status);
    if (!Array.isArray(body?.regions)) throw new RequestError("the server sent an unexpected response");
    return { items: body.regions, stale: response.headers.get("Proxyhealth-Stale") === "true" };
  }

  async function getDetails() {
    try {
      if (detailsUrl) return await get(detailsUrl);
    } catch (error) {
      if (error.status !== 403) throw error;
      detailsUrl = ""; // the user has lost the permission
    }
    return { items: [], stale: false };
  }

  let polling = false;
  let nextPoll;

  async function poll() {
    if (polling || document.hidden) return;
    polling = true;
    clearTimeout(nextPoll);
    const startedAt = new Date();
    try {
      const results = await Promise.allSettled([get(picker.dataset.regions), getDetails()]);
      const [list, details] = results.map((result) => result.value);
      if (list) update(list.items, details?.items ?? []);
      const failed = results.find((result) => result.reason);
      if (failed) throw failed.reason;
      if (list.stale || details.stale) {
        showOutdated("the control plane has no current data about its regions");
      } else {
        updatedAt = startedAt;
        notice.hidden = true;
        picker.removeAttribute("data-outdated");
      }
      measureAll();
    } catch (error) {
      showOutdated(error.message, error.status === 401);
      if (!(error instanceof RequestError)) throw error;
    } finally {
      polling = false;
      nextPoll = setTimeout(poll, pollEvery);
    }
  }

  function update(items, details) {
    loaded = true;
    const statuses = new Map(details.map((proxy) => [proxy.id, proxy.healthy ? null : proxy.status]));
    const removed = new Set(regions.keys());
    for (const item of items) {
      removed.delete(item.id);
      const region = regions.get(item.id) ?? { row: newRow(item.id) };
      const keepSamples = region.healthy && item.healthy && region.url === item.path_app_url;
      Object.assign(region, keepSamples ? {} : { samples: [], measuredAt: 0 }, {
        id: item.id,
        name: item.display_name || item.name,
        icon: item.icon_url,
        url: item.path_app_url,
        healthy: item.healthy === true,
        status: statuses.get(item.id), // missing without the permission, or if the two responses disagree
      });
      regions.set(item.id, region);
    }
    for (const id of removed) regions.delete(id);
    render();
  }

  function showOutdated(why, signIn = false) {
    const time = (updatedAt ?? openedAt).toTimeString().slice(0, 8);
    const age = updatedAt ? `Last update: ${time}.` : `No update since this page was opened at ${time}.`;
    const outdated = `The regions may be out of date: ${why}. ${age}`;
    setText(notice.firstElementChild, loaded ? outdated : `The regions cannot be loaded: ${why}.`);
    notice.querySelector("a").hidden = !signIn;
    notice.hidden = false;
    picker.setAttribute("data-outdated", "");
  }

  // The latencies

  const timings = new Map(); // by URL: the function that takes its Resource Timing entry
  new PerformanceObserver((entries) => {
    for (const entry of entries.getEntries()) timings.get(entry.name)?.(entry);
  }).observe({ type: "resource" });

  let sampleCount = 0;

  async function sample(base) {
    sampleCount += 1;
    // The unique query identifies the Resource Timing entry of this request.
    const url = `${base.replace(/\/$/, "")}/latency-check?${Date.now().toString(36)}.${sampleCount}`;
    const timing = new Promise((resolve) => timings.set(url, resolve));
    try {
      const begin = performance.now();
      const response = await fetch(url, {
        cache: "no-store",
        credentials: "omit",
        signal: AbortSignal.timeout(REGION_TIMEOUT),
      });
      await response.arrayBuffer();
      const total = performance.now() - begin;
      if (!response.ok) throw new RequestError(`the region responded with status ${response.status}`);
      const entry = await Promise.race([timing, new Promise((resolve) => setTimeout(resolve, 500))]);
      // Without Timing-Allow-Origin, requestStart is 0; the only duration then includes the connection set-up.
      return entry?.requestStart ? entry.responseStart - entry.requestStart : (entry?.duration ?? total);
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
    // Browsers slow down hidden tabs. The region may have changed or failed during the measurement.
    if (document.hidden || region.url !== url || !region.healthy) return;
    region.measuredAt = Date.now();
    region.samples = failed ? [] : [...region.samples, ...samples].slice(-MAX_SAMPLES);
    render();
  }

  let measuring = false;

  async function measureAll() {
    if (measuring) return;
    measuring = true;
    const due = [...regions.values()].filter((r) => r.healthy && Date.now() - r.measuredAt >= measureEvery);
    const measureNext = async () => {
      while (due.length && !document.hidden) await measure(due.shift());
    };
    await Promise.all(Array.from({ length: CONCURRENCY }, measureNext));
    measuring = false;
  }

  function latency(region) {
    const sorted = [...region.samples].sort((a, b) => a - b);
    return sorted.length ? sorted[Math.floor(sorted.length / 2)] : Infinity;
  }

  // The choice and the connection

  function loadChoice() {
    try {
      const { id, name } = JSON.parse(localStorage.getItem(STORAGE_KEY));
      return { id: String(id), name: String(name) };
    } catch {
      return null; // no choice, or no storage
    }
  }

  function choose(region) {
    chosen = { id: region.id, name: region.name };
    isFallback = false;
    try {
      localStorage.setItem(STORAGE_KEY, JSON.stringify(chosen));
    } catch {
      // Without storage, the choice lasts until the page is closed.
    }
    render();
  }

  function compare(a, b) {
    if (a.healthy !== b.healthy) return a.healthy ? -1 : 1;
    const [latencyA, latencyB] = [latency(a), latency(b)];
    return latencyA === latencyB ? a.name.localeCompare(b.name) : latencyA - latencyB;
  }

  function connect(sorted) {
    const usable = sorted.filter((region) => region.healthy);
    const preferred = usable.find((region) => region.id === chosen?.id);
    const unchanged = usable.find((region) => region === current);
    // The nearest region is known when all are measured. After a failure, the first measured one is used at once.
    const failed = current || chosen;
    const waiting = usable.some((r) => !r.measuredAt) && !(failed && usable.some((r) => r.samples.length));
    // The current region stays in use, even if another one becomes nearer.
    const next = preferred ?? unchanged ?? (waiting ? null : (usable[0] ?? null));

    const chosenName = regions.get(chosen?.id)?.name ?? chosen?.name;
    const lost = current && !unchanged ? current.name : chosen && !preferred ? chosenName : "";
    const returned = preferred && isFallback ? chosenName : "";
    const moved = Boolean(current || returned);
    isFallback = Boolean(chosen && !preferred);
    if (!waiting || next) current = next; // until then, the sentence names the lost region
    const facts = [regions.size > 0, usable.length > 0, next?.id, preferred?.id, chosen?.id].join();
    if (facts === lastFacts) return;
    lastFacts = facts;
    showConnection({ usable, preferred, next, lost, returned, moved });
  }

  function showConnection({ usable, preferred, next, lost, returned, moved }) {
    const sentence = next && `You are ${moved ? "now " : ""}connected through ${next.name}`;
    let state = "connected";
    let text;
    if (!usable.length) {
      state = "none";
      text = `${regions.size ? "No region is available." : "There are no regions."} You are not connected.`;
    } else if (!next) {
      state = "looking";
      text = `${lost ? `${lost} is not available. ` : ""}Looking for the nearest region…`;
    } else if (preferred) {
      text = `${returned ? `${returned} is available again. ` : ""}${sentence}.`;
    } else if (lost) {
      state = "fallback";
      text = `${lost} is not available. You are now connected through ${next.name}.`;
    } else {
      text = `${sentence}, the nearest region. To always use the same region, choose one.`;
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

    const style = healthy ? "ok" : (status?.status ?? "unregistered");
    row.badge.className = `proxyhealth-badge proxyhealth-${style}`;
    setText(row.badge, healthy ? "available" : (status?.status ?? "not available"));

    const ms = Math.round(latency(region));
    const measured = region.samples.length ? `${ms || "< 1"} ms` : region.measuredAt ? "no response" : "measuring…";
    setText(row.latency, healthy ? measured : "");

    const [code, why] = row.reason.children;
    setText(code, status?.reason ?? "");
    const general = "You can choose this region when it is available again.";
    setText(why, status ? (status.report.errors[0] ?? STATUS_TEXTS[status.status] ?? "") : general);
    row.reason.hidden = healthy;
  }

  function showIcon(img, url) {
    const usable = /^(https?:\/)?\//i.test(url) ? url : "";
    if (img.getAttribute("src") === (usable || null)) return;
    img.hidden = true; // until it is loaded
    if (usable) img.src = usable;
    else img.removeAttribute("src");
  }

  let pointerInside = false;

  function arrange(rows) {
    const remaining = new Set(rows);
    for (const row of [...list.children]) if (!remaining.has(row)) row.remove();
    if (pointerInside) {
      list.append(...rows.filter((row) => !row.isConnected));
    } else if (rows.some((row, i) => row !== list.children[i])) {
      // A row that is moved loses the focus, so the other rows are moved around the focused one.
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
    // Show old data as outdated until the next response.
    if (loaded && Date.now() - updatedAt > 2 * pollEvery) picker.setAttribute("data-outdated", "");
    poll();
  });
  addEventListener("online", poll);
  addEventListener("offline", poll);
  addEventListener("storage", (event) => {
    if (event.key !== STORAGE_KEY && event.key !== null) return;
    chosen = loadChoice(); // made in another tab
    isFallback = false;
    if (loaded) render();
  });

  picker.hidden = false;
  poll();
})();
