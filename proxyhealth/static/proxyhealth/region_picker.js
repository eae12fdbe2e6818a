// A region picker, as an element for pages: <proxyhealth-region-picker src="/api/v2/regions">
// docs/frontend.md describes its attributes, properties, events, and styles.

import { RegionMonitor } from "./region_monitor.js";

// The texts in English. A page can replace some or all of them with the property "texts".
export const TEXTS = {
  legend: "Choose a region",
  loading: "Loading the regions…",
  chosen: "You are connected through {region}.",
  chosenMoved: "You are now connected through {region}.",
  returned: "{region} is available again. You are now connected through {region}.",
  nearest: "You are connected through {region}, the nearest region. To always use the same region, choose one.",
  nearestMoved: "You are now connected through {region}, the nearest region. To always use the same region, choose one.",
  fallback: "{lost} is not available. You are now connected through {region}.",
  unconfirmed: "Your region is {region}. It may no longer be available.",
  looking: "Looking for the nearest region…",
  lookingAfter: "{lost} is not available. Looking for the nearest region…",
  unavailable: "No region is available. You are not connected.",
  empty: "There are no regions. You are not connected.",
  notLoaded: "The regions cannot be loaded: {why}.",
  outdated: "The regions may be out of date: {why}. Last update: {time}.",
  neverUpdated: "The regions may be out of date: {why}. No update since this page was opened at {time}.",
  stale: "the control plane has no current data about its regions",
  timeout: "the server did not respond in time",
  unexpected: "the server sent an unexpected response",
  unreachable: "the server cannot be reached",
  refused: "the server responded with status {status}",
  signedOut: "you are not signed in",
  signIn: "Sign in",
  inUse: "connected",
  inUseUnconfirmed: "your region",
  yourChoice: "your choice",
  available: "available",
  notAvailable: "not available",
  later: "You can choose this region when it is available again.",
  unregistered: "This region has no URL yet.",
  unknown: "This region has not been checked yet at its current URL.",
  measuring: "measuring…",
  noResponse: "no response",
  latency: "{ms} ms",
};

// The values of data-state, which the styles use.
const STATES = { chosen: "connected", nearest: "connected", fallback: "fallback", looking: "looking" };

function element(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// Set the text of a node. Values are isolated, so that a name in another direction does not reorder the sentence.
function setText(node, template, values = {}) {
  const parts = template.split(/\{(\w+)\}/).map((part, i) => (i % 2 ? String(values[part] ?? "") : part));
  // Screen readers announce every change of a live region, even one to the same text.
  if (node.textContent === parts.join("")) return;
  node.replaceChildren(...parts.map((part, i) => (i % 2 ? element("bdi", { textContent: part }) : part)));
}

let pickerCount = 0;

export class RegionPicker extends HTMLElement {
  texts = {};

  #monitor = new RegionMonitor();
  #prefix = `proxyhealth-region-${(pickerCount += 1)}`;
  #openedAt = new Date();
  #rows = new Map(); // by the id of the region
  #pointerInside = false;
  #shown = {}; // the connection that the sentence is about, and whether it says that it is unconfirmed
  #notice;
  #signIn;
  #connection;
  #list;

  constructor() {
    super();
    this.#monitor.addEventListener("update", () => this.#render());
    this.#monitor.addEventListener("region-change", ({ detail }) => {
      this.dispatchEvent(new CustomEvent("region-change", { bubbles: true, detail }));
    });
  }

  get monitor() {
    return this.#monitor;
  }

  connectedCallback() {
    if (!this.#list) this.#build();
    // Later, so that the script of the page can set properties of a new element first.
    setTimeout(() => {
      if (this.isConnected) this.#monitor.start();
    });
  }

  disconnectedCallback() {
    this.#monitor.stop();
  }

  static observedAttributes = ["src", "details", "credentials", "poll", "measure"];

  attributeChangedCallback(name, _, value) {
    const isNumber = name === "poll" || name === "measure";
    this.#monitor.configure({ [name]: isNumber ? (Number(value) > 0 ? Number(value) : null) : value });
  }

  // Headers of the requests to the server, or a function that returns them.
  set headers(headers) {
    this.#monitor.configure({ headers });
  }

  #text(name) {
    return this.texts[name] ?? TEXTS[name];
  }

  #build() {
    this.#signIn = element("a", { hidden: true });
    this.#notice = element("p", { className: "notice proxyhealth-stale", hidden: true, dir: "auto" });
    this.#notice.append(element("span"), " ", this.#signIn);
    this.#connection = element("p", { className: "connection", tabIndex: -1, dir: "auto" });
    this.#list = element("ul", { className: "regions" });
    const status = element("div", {}, this.#notice);
    for (const node of [status, this.#connection]) node.setAttribute("role", "status");
    this.#list.setAttribute("role", "list");
    this.#list.addEventListener("pointerenter", () => (this.#pointerInside = true));
    this.#list.addEventListener("pointerleave", () => {
      this.#pointerInside = false;
      this.#render();
    });
    const legend = element("legend", { dir: "auto" }, this.#text("legend"));
    this.replaceChildren(status, this.#connection, element("fieldset", { hidden: true }, legend, this.#list));
    setText(this.#connection, this.#text("loading"));
  }

  #render() {
    const { error, loaded, regions } = this.#monitor;
    this.#showNotice();
    this.#connection.hidden = !loaded && Boolean(error); // the notice says that nothing was loaded
    if (!loaded) return;
    const focused = this.#list.contains(document.activeElement) ? document.activeElement : null;
    this.#showConnection();
    this.#arrange(regions.map((region) => this.#show(region)));
    this.#list.parentElement.hidden = !regions.length;
    if (focused && (focused.disabled || !focused.isConnected)) {
      const next = this.#rows.get(this.#monitor.region?.id)?.radio ?? this.#connection;
      (next.disabled ? this.#connection : next).focus({ preventScroll: true });
    }
  }

  #showNotice() {
    const { error, stale, updatedAt, loaded, outdated } = this.#monitor;
    const code = error?.code ?? (stale ? "stale" : "");
    this.toggleAttribute("data-outdated", Boolean(code) || (loaded && outdated));
    this.#notice.hidden = !code;
    if (!code) return;
    const why = this.#text(code).replace("{status}", error?.status);
    const time = (updatedAt ?? this.#openedAt).toTimeString().slice(0, 8);
    const text = !loaded ? "notLoaded" : updatedAt ? "outdated" : "neverUpdated";
    setText(this.#notice.firstElementChild, this.#text(text), { why, time });
    const signInUrl = this.getAttribute("sign-in");
    setText(this.#signIn, this.#text("signIn"));
    this.#signIn.href = signInUrl ?? "";
    this.#signIn.hidden = !(signInUrl && error?.code === "signedOut");
  }

  // True if the server did not confirm the regions at the last poll. Do not say then that a region is connected.
  #isUnconfirmed() {
    return Boolean(this.#monitor.error) || this.#monitor.stale;
  }

  #showConnection() {
    const { connection } = this.#monitor;
    const unconfirmed = this.#isUnconfirmed();
    const isNew = connection !== this.#shown.connection;
    if (!isNew && unconfirmed === this.#shown.unconfirmed) return;
    this.#shown = { connection, unconfirmed };
    const { state, region, lost, moved, returned } = connection;
    let text = state;
    if (region && unconfirmed) text = "unconfirmed";
    else if (isNew && state === "chosen" && returned) text = "returned";
    else if (isNew && moved && ["chosen", "nearest"].includes(state)) text = `${state}Moved`;
    else if (state === "looking" && lost) text = "lookingAfter";
    setText(this.#connection, this.#text(text), { region, lost });
    this.#connection.dataset.state = STATES[state] ?? "none";
  }

  #newRow(id) {
    const radio = element("input", { type: "radio", name: this.#prefix, id: `${this.#prefix}-${id}` });
    const icon = element("img", { alt: "", referrerPolicy: "no-referrer", hidden: true });
    const name = element("label", { dir: "auto", htmlFor: radio.id });
    const tag = element("span", { className: "tag", dir: "auto", hidden: true });
    const badge = element("span", { dir: "auto" });
    const latency = element("span", { className: "latency", dir: "auto" });
    const facts = element("span", { className: "facts", id: `${radio.id}-facts` }, badge, " ", latency);
    const code = element("code");
    const why = element("span", { dir: "auto" });
    const reason = element("p", { className: "reason", id: `${radio.id}-reason`, hidden: true }, code, " ", why);
    const node = element("li", { className: "region" });
    node.append(radio, element("span", { className: "icon" }, icon));
    node.append(element("span", { className: "name" }, name, " ", tag), facts, reason);
    radio.setAttribute("aria-describedby", `${facts.id} ${reason.id}`);
    radio.addEventListener("change", () => this.#monitor.choose(id));
    icon.addEventListener("load", () => (icon.hidden = false));
    icon.addEventListener("error", () => (icon.hidden = true));
    return { node, radio, icon, name, tag, badge, latency, reason, code, why };
  }

  #show(region) {
    const { id, status, latency_ms: latency } = region;
    const healthy = region.healthy === true;
    const row = this.#rows.get(id) ?? this.#newRow(id);
    this.#rows.set(id, row);
    const isChosen = id === this.#monitor.chosen?.id;
    row.radio.disabled = !healthy;
    row.radio.checked = healthy && isChosen;
    setText(row.name, "{name}", { name: region.display_name || region.name });
    this.#showIcon(row.icon, region.icon_url);

    const inUse = this.#isUnconfirmed() ? "inUseUnconfirmed" : "inUse";
    const tag = healthy ? id === this.#monitor.region?.id && inUse : isChosen && "yourChoice";
    setText(row.tag, tag ? this.#text(tag) : "");
    row.tag.hidden = !tag;
    row.badge.className = `proxyhealth-badge proxyhealth-${healthy ? "ok" : (status?.status ?? "unregistered")}`;
    setText(row.badge, healthy ? this.#text("available") : (status?.status ?? this.#text("notAvailable")));
    const measured = latency !== null ? "latency" : region.measured ? "noResponse" : "measuring";
    setText(row.latency, healthy ? this.#text(measured) : "", { ms: Math.round(latency) || "< 1" });

    setText(row.code, status?.reason ?? "");
    const text = status ? (status.report.errors[0] ?? this.#text(status.status)) : this.#text("later");
    setText(row.why, "{text}", { text });
    row.reason.hidden = healthy;
    return row.node;
  }

  #showIcon(img, icon) {
    // A path belongs to the server of the regions.
    const server = new URL(this.getAttribute("src") ?? "", document.baseURI);
    const usable = /^(https?:\/)?\//i.test(icon) ? new URL(icon, server).href : "";
    if (img.getAttribute("src") === (usable || null)) return;
    img.hidden = true; // until it is loaded
    if (usable) img.src = usable;
    else img.removeAttribute("src");
  }

  #arrange(rows) {
    const list = this.#list;
    const remaining = new Set(rows);
    for (const [id, { node }] of this.#rows) {
      if (remaining.has(node)) continue;
      node.remove();
      this.#rows.delete(id);
    }
    if (this.#pointerInside) {
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
}

// A page may include two copies of this module.
if (!customElements.get("proxyhealth-region-picker")) {
  customElements.define("proxyhealth-region-picker", RegionPicker);
}
