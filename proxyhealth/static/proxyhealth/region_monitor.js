// The regions of /api/v2/regions, without a user interface: polls the server, measures the latency of each healthy region
// from the browser, and says which region to use. The region that the user chose is used as long as it is healthy.
// region_picker.js shows it in a page. docs/frontend.md describes the options, the properties, and the events.

const SERVER_TIMEOUT = 5000; // ms
const REGION_TIMEOUT = 3000; // ms
const SAMPLES = 3; // per measurement of a region, one after the other
const MAX_SAMPLES = 9; // kept per region; their median is shown, so that the order is stable
const CONCURRENCY = 4; // regions that are measured at the same time
const STORAGE_KEY = "proxyhealth.region";
const OPTIONS = { src: "/api/v2/regions", details: null, credentials: "same-origin", headers: {}, poll: 5, measure: 30 };

// A failed request to the server: its code, and the status of the response.
class RequestError extends Error {
  constructor(code, status) {
    super(code);
    Object.assign(this, { code, status });
  }
}

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
    const signal = AbortSignal.timeout(REGION_TIMEOUT);
    const response = await fetch(url, { cache: "no-store", credentials: "omit", signal });
    await response.arrayBuffer();
    const total = performance.now() - begin;
    if (!response.ok) throw new RequestError("refused", response.status);
    const entry = await Promise.race([timing, new Promise((resolve) => setTimeout(resolve, 500))]);
    // Without Timing-Allow-Origin, requestStart is 0; the only duration then includes the connection set-up.
    return entry?.requestStart ? entry.responseStart - entry.requestStart : (entry?.duration ?? total);
  } finally {
    timings.delete(url);
  }
}

function latency({ samples }) {
  return samples.length ? [...samples].sort((a, b) => a - b)[Math.floor(samples.length / 2)] : Infinity;
}

function loadChoice() {
  try {
    const { id, name } = JSON.parse(localStorage.getItem(STORAGE_KEY));
    return { id: String(id), name: String(name) };
  } catch {
    return null; // no choice, or no storage
  }
}

function storeChoice(choice) {
  try {
    if (choice) localStorage.setItem(STORAGE_KEY, JSON.stringify(choice));
    else localStorage.removeItem(STORAGE_KEY);
  } catch {
    // Without storage, the choice lasts until the page is closed.
  }
}

export class RegionMonitor extends EventTarget {
  chosen = loadChoice(); // {id, name}; kept while that region is not available
  loaded = false; // true after the first list of regions
  updatedAt = null; // the time of the last current list
  stale = false; // true if the server says that its data may be out of date
  staleReason = "";
  error = null; // {code, status} of the last poll, if it failed
  connection = { state: "loading", region: null, lost: "", moved: false, returned: false };

  #options = { ...OPTIONS };
  #regions = new Map(); // by id: the server's data, and the measured samples
  #current = null; // the region of the connection
  #isFallback = false; // true while the chosen region is not available
  #lastFacts = "";
  #mayNotSeeDetails = false;
  #polling = false;
  #measuring = false;
  #nextPoll;
  #running = null;

  constructor(options = {}) {
    super();
    this.configure(options);
  }

  // Change some options, from the next request on. Null sets the default.
  configure(options) {
    for (const [name, value] of Object.entries(options)) this.#options[name] = value ?? OPTIONS[name];
  }

  // The region to use, or null.
  get region() {
    return this.#current && this.#public(this.#current);
  }

  // All regions: the healthy ones first, then by latency and by name.
  get regions() {
    return this.#sorted().map((region) => this.#public(region));
  }

  // Use the region with this id as long as it is healthy. With null, use the nearest one.
  choose(id) {
    const region = this.#regions.get(id);
    if (id !== null && !region) throw new RangeError(`no region has the id ${id}`);
    this.chosen = region ? { id, name: region.name } : null;
    this.#isFallback = false;
    if (!region) this.#current = null;
    storeChoice(this.chosen);
    this.#change();
  }

  start() {
    if (this.#running) return;
    this.#running = new AbortController();
    const { signal } = this.#running;
    const poll = () => this.#poll();
    document.addEventListener("visibilitychange", () => this.#becomeVisible(), { signal });
    addEventListener("online", poll, { signal });
    addEventListener("offline", poll, { signal });
    addEventListener("storage", (event) => this.#followOtherTab(event), { signal });
    poll();
  }

  stop() {
    this.#running?.abort();
    this.#running = null;
    clearTimeout(this.#nextPoll);
  }

  // True if the regions may be out of date, also because the page was hidden.
  get outdated() {
    return Boolean(this.error) || this.stale || Date.now() - this.updatedAt > 2000 * this.#options.poll;
  }

  #becomeVisible() {
    if (document.hidden) return;
    this.#change(); // old data is outdated until the next response
    this.#poll();
  }

  #public({ item, status, samples, measuredAt }) {
    const ms = samples.length ? latency({ samples }) : null;
    return Object.freeze({ ...item, status: status ?? null, latency_ms: ms, measured: Boolean(measuredAt) });
  }

  // The server's data

  async #get(url) {
    const { credentials, headers } = this.#options;
    let response, body;
    try {
      response = await fetch(url, {
        cache: "no-cache", // conditional: the server does not send an unchanged body again
        credentials,
        headers: typeof headers === "function" ? await headers() : headers,
        signal: AbortSignal.timeout(SERVER_TIMEOUT),
      });
      body = response.ok ? await response.json() : null;
    } catch (error) {
      if (error.name === "TimeoutError") throw new RequestError("timeout");
      throw new RequestError(error instanceof SyntaxError ? "unexpected" : "unreachable");
    }
    if (!response.ok) throw new RequestError(response.status === 401 ? "signedOut" : "refused", response.status);
    if (!Array.isArray(body?.regions)) throw new RequestError("unexpected");
    return body;
  }

  async #getDetails() {
    const { details } = this.#options;
    try {
      if (details && !this.#mayNotSeeDetails) return await this.#get(details);
    } catch (error) {
      if (error.status !== 403) throw error;
      this.#mayNotSeeDetails = true; // the user has lost the permission
    }
    return { regions: [], stale: false };
  }

  async #poll() {
    if (this.#polling || document.hidden || !this.#running) return;
    this.#polling = true;
    clearTimeout(this.#nextPoll);
    const startedAt = new Date();
    const results = await Promise.allSettled([this.#get(this.#options.src), this.#getDetails()]);
    this.#polling = false;
    if (!this.#running) return;
    this.#nextPoll = setTimeout(() => this.#poll(), 1000 * this.#options.poll);
    const [list, details] = results.map((result) => result.value);
    const error = results.find((result) => result.reason)?.reason;
    this.error = error ? { code: error.code, status: error.status } : null;
    if (!error) {
      const stale = [list, details].find((body) => body.stale);
      this.stale = Boolean(stale);
      this.staleReason = stale?.stale_reason ?? "";
      if (!stale) this.updatedAt = startedAt;
    }
    if (list) this.#update(list.regions, details?.regions ?? []);
    this.#change();
    if (!error) this.#measureAll();
  }

  #update(items, details) {
    this.loaded = true;
    const statuses = new Map(details.map((proxy) => [proxy.id, proxy.healthy ? null : proxy.status]));
    const removed = new Set(this.#regions.keys());
    for (const item of items) {
      removed.delete(item.id);
      const region = this.#regions.get(item.id) ?? {};
      const keepSamples = region.healthy && item.healthy && region.url === item.path_app_url;
      Object.assign(region, keepSamples ? {} : { samples: [], measuredAt: 0 }, {
        item,
        id: item.id,
        name: item.display_name || item.name,
        url: item.path_app_url,
        healthy: item.healthy === true,
        status: statuses.get(item.id), // missing without the permission, or if the two responses disagree
      });
      this.#regions.set(item.id, region);
    }
    for (const id of removed) this.#regions.delete(id);
  }

  // The latencies

  async #measure(region) {
    const { url } = region;
    const samples = [];
    while (samples.length < SAMPLES) {
      const time = await sample(url).catch(() => null);
      if (time === null) break;
      samples.push(time);
    }
    // Browsers slow down hidden tabs. The region may have changed or failed during the measurement.
    if (document.hidden || region.url !== url || !region.healthy || !this.#running) return;
    region.measuredAt = Date.now();
    region.samples = samples.length < SAMPLES ? [] : [...region.samples, ...samples].slice(-MAX_SAMPLES);
    this.#change();
  }

  async #measureAll() {
    if (this.#measuring) return;
    this.#measuring = true;
    const isDue = (region) => region.healthy && Date.now() - region.measuredAt >= 1000 * this.#options.measure;
    const due = [...this.#regions.values()].filter(isDue);
    const measureNext = async () => {
      while (due.length && !document.hidden && this.#running) await this.#measure(due.shift());
    };
    await Promise.all(Array.from({ length: CONCURRENCY }, measureNext));
    this.#measuring = false;
  }

  // The choice and the connection

  #followOtherTab(event) {
    if (event.key !== STORAGE_KEY && event.key !== null) return;
    this.chosen = loadChoice();
    this.#isFallback = false;
    this.#change();
  }

  #sorted() {
    return [...this.#regions.values()].sort((a, b) => {
      if (a.healthy !== b.healthy) return a.healthy ? -1 : 1;
      const [latencyA, latencyB] = [latency(a), latency(b)];
      return latencyA === latencyB ? a.name.localeCompare(b.name) : latencyA - latencyB;
    });
  }

  #change() {
    const previous = this.#current;
    if (this.loaded) this.#connect(this.#sorted());
    this.dispatchEvent(new CustomEvent("update"));
    if (this.#current?.id === previous?.id) return;
    const detail = { region: this.region, previous: previous && this.#public(previous) };
    this.dispatchEvent(new CustomEvent("region-change", { detail }));
  }

  #connect(sorted) {
    const { chosen } = this;
    const usable = sorted.filter((region) => region.healthy);
    const preferred = usable.find((region) => region.id === chosen?.id);
    const unchanged = usable.find((region) => region === this.#current);
    // The nearest region is known when all are measured. After a failure, the first measured one is used at once.
    const failed = this.#current || chosen;
    const waiting = usable.some((r) => !r.measuredAt) && !(failed && usable.some((r) => r.samples.length));
    // The current region stays in use, even if another one becomes nearer.
    const next = preferred ?? unchanged ?? (waiting ? null : (usable[0] ?? null));

    const chosenName = this.#regions.get(chosen?.id)?.name ?? chosen?.name;
    const lost = this.#current && !unchanged ? this.#current.name : chosen && !preferred ? chosenName : "";
    const returned = Boolean(preferred && this.#isFallback);
    const moved = Boolean(this.#current || returned);
    this.#isFallback = Boolean(chosen && !preferred);
    if (!waiting || next) this.#current = next; // until then, the connection names the lost region
    const facts = [this.#regions.size > 0, usable.length > 0, next?.id, preferred?.id, chosen?.id].join();
    if (facts === this.#lastFacts) return;
    this.#lastFacts = facts;
    let state = preferred ? "chosen" : lost ? "fallback" : "nearest";
    if (!next) state = !sorted.length ? "empty" : !usable.length ? "unavailable" : "looking";
    this.connection = { state, region: next?.name ?? "", lost, moved, returned };
  }
}
