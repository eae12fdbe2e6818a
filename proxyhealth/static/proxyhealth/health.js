// Keeps a page of statuses current. It patches #proxyhealth-live, so that focus, selection and scroll stay, and says
// when it has lost contact: stale statuses must not look current. All sentences come from the page.
"use strict";
(() => {
  const live = document.getElementById("proxyhealth-live");
  const offline = document.getElementById("proxyhealth-offline");
  const age = document.getElementById("proxyhealth-age");
  const announcement = document.getElementById("proxyhealth-announcement");
  const sentences = JSON.parse(document.getElementById("proxyhealth-sentences").textContent);
  const seconds = Number(live.dataset.refresh);
  const HIDDEN_SECONDS = 60; // between two refreshes of a tab that nobody sees
  const MAX_OLDER = 3; // answers in a row that are ignored because they are older than what is shown
  const MAX_NAMED = 5; // changes in one announcement
  const MARK_SECONDS = 20;
  const SAID_SECONDS = 20;

  class Lost extends Error {} // its message is a sentence

  // {name} in a sentence. Names of proxies are isolated, because some are written from right to left.
  const fill = (sentence, values) => sentence.replace(/\{(\w+)\}/g, (_, name) => values[name]);
  const isolated = (text) => `\u2068${text}\u2069`;

  function ago(milliseconds) {
    const age = Math.max(0, Math.round(milliseconds / 1000));
    if (age < 120) return fill(sentences.seconds, { count: age });
    if (age < 7200) return fill(sentences.minutes, { count: Math.round(age / 60) });
    if (age < 172800) return fill(sentences.hours, { count: Math.round(age / 3600) });
    return fill(sentences.days, { count: Math.round(age / 86400) });
  }

  // A clock that is set back must not make the page look younger, and the other one stands still during sleep.
  const now = () => [Date.now(), performance.now()];
  const since = (moment) => Math.max(...now().map((time, place) => time - moment[place]));

  // A new text is a new element, so that a screen reader says it once, and nothing else again.
  function say(text) {
    const line = announcement.appendChild(document.createElement("span"));
    line.textContent = `${text} `;
    setTimeout(() => line.remove(), SAID_SECONDS * 1000);
  }

  const setText = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };

  // The state of this page

  let title = document.title;
  let etag = "";
  let confirmedAt = now(); // when the server last had what is shown
  let lost = ""; // the reason, as a sentence
  let failures = 0; // in a row
  let older = 0; // likewise
  let timer = 0;
  let refreshing = false;
  let clockError = 0; // milliseconds by which the clock of this computer is behind that of the server
  const rows = () => [...live.querySelectorAll("[data-proxy]")];
  const valuesOf = (name) => new Map(rows().map((row) => [row.id, row.dataset[name]]));
  const startOf = (row) => Date.parse(row.dataset.since) || 0;
  const newestStart = () => Math.max(0, ...rows().map(startOf));
  const said = valuesOf("status"); // the last status of each row that was shown or said
  let newest = newestStart();

  // What changed

  function sentencesOfChanges(statuses, names) {
    const changes = [];
    for (const row of rows()) {
      const { proxy, status } = row.dataset;
      const isNews = said.has(row.id) ? said.get(row.id) !== status : startOf(row) > newest;
      if (statuses.get(row.id) !== status) row.dataset.changed = MARK_SECONDS;
      if (isNews) changes.push(fill(sentences[status] ?? sentences.changed, { proxy: isolated(proxy) }));
      said.set(row.id, status);
    }
    newest = Math.max(newest, newestStart());
    // On one page of several, a row that left may only have moved to another page.
    const isWhole = !document.getElementById("proxyhealth-pages");
    for (const [id, proxy] of names) {
      if (isWhole && !document.getElementById(id) && said.delete(id)) {
        changes.push(fill(sentences.gone, { proxy: isolated(proxy) }));
      }
    }
    return changes;
  }

  function sayChanges(changes) {
    if (!changes.length) return;
    const named = changes.slice(0, MAX_NAMED);
    if (changes.length > MAX_NAMED) named.push(fill(sentences.more, { count: changes.length - MAX_NAMED }));
    const list = named.join(", ");
    say(changes.length === 1 ? list : fill(sentences.several, { count: changes.length, changes: list }));
  }

  // The patch

  const keptAttributes = { DETAILS: ["open"], DIALOG: ["open"], OPTION: ["selected"], TEXTAREA: ["value"] };
  const unkeptInputs = ["hidden", "submit", "button", "reset", "image"];

  // What the user or a script has set stays.
  function mayUpdate(name, element) {
    if (["data-changed", "aria-busy", "hidden"].includes(name)) return false;
    if (element.tagName === "INPUT" && !unkeptInputs.includes(element.type)) {
      return name !== "checked" && name !== "value";
    }
    return !keptAttributes[element.tagName]?.includes(name);
  }

  const mayRemove = (node) => !(node instanceof Element && node.hasAttribute("data-by-script"));

  const morph = (fresh) =>
    Idiomorph.morph(live, fresh, {
      morphStyle: "outerHTML",
      callbacks: { beforeAttributeUpdated: mayUpdate, beforeNodeRemoved: mayRemove },
    });

  const lengthOf = (node) => node.nodeValue?.length ?? node.childNodes.length;

  function selectionToRestore() {
    const selection = document.getSelection();
    if (!selection.rangeCount || selection.isCollapsed) return () => {};
    const { anchorNode, anchorOffset, focusNode, focusOffset } = selection;
    return () => {
      if (!anchorNode.isConnected || !focusNode.isConnected) return;
      selection.setBaseAndExtent(
        anchorNode,
        Math.min(anchorOffset, lengthOf(anchorNode)),
        focusNode,
        Math.min(focusOffset, lengthOf(focusNode)),
      );
    };
  }

  // The row that the user reads stays where it is on the screen, whatever moves above it.
  function scrollToRestore(fresh) {
    const row = rows().find((row) => {
      const status = fresh.querySelector(`#${CSS.escape(row.id)}`)?.dataset.status;
      return status === row.dataset.status && row.getBoundingClientRect().bottom > 0;
    });
    const top = row?.getBoundingClientRect().top;
    const isScrolled = window.scrollY > 0;
    return () => {
      if (row?.isConnected && isScrolled) window.scrollBy(0, row.getBoundingClientRect().top - top);
    };
  }

  // The focus goes to the next row if its own has left: the keyboard must not begin at the top of the page.
  function focusToRestore() {
    const focused = document.activeElement;
    const all = rows();
    const place = all.indexOf(focused?.closest("[data-proxy]"));
    return () => {
      if (focused === document.activeElement) return;
      const rest = place < 0 ? [] : [...all.slice(place + 1), ...all.slice(0, place).reverse()];
      const next = rest.find((row) => row.isConnected)?.querySelector("a, button");
      (focused?.isConnected ? focused : next)?.focus({ preventScroll: true });
    };
  }

  function patch(fresh) {
    const restoreFocus = focusToRestore();
    const restoreSelection = selectionToRestore();
    const restoreScroll = scrollToRestore(fresh);
    morph(fresh);
    restoreFocus();
    restoreSelection();
    restoreScroll();
  }

  // Fencing tokens grow, also after Redis was emptied, when the numbers of snapshots begin again.
  function isOlder(fresh) {
    const [token, number, shownToken, shownNumber] = [fresh, live].flatMap(({ dataset }) => [
      Number(dataset.token),
      Number(dataset.snapshot),
    ]);
    return token < shownToken || (token === shownToken && number < shownNumber);
  }

  // Returns false for a page of a process that is behind. If only such pages come, they are what the server has.
  function show(page, tag) {
    const fresh = page.getElementById("proxyhealth-live");
    if (!fresh) throw new Lost(sentences.otherPage);
    if (isOlder(fresh) && ++older <= MAX_OLDER) return false;
    const before = [valuesOf("status"), valuesOf("proxy")];
    patch(fresh);
    title = page.title;
    etag = tag ?? "";
    sayChanges(sentencesOfChanges(...before));
    return true;
  }

  // Contact with the server

  // Ages come from times of the server. Its header has whole seconds.
  function noteClock(date) {
    const error = Date.parse(date) - Date.now();
    if (!Number.isNaN(error)) clockError = Math.abs(error) > 2000 ? error : 0;
  }

  async function load() {
    const response = await fetch(location.href, {
      cache: "no-store",
      headers: etag ? { "If-None-Match": etag } : {},
      redirect: "manual",
      signal: AbortSignal.timeout(Math.max(seconds, 5) * 1000),
    }).catch(() => {
      throw new Lost(sentences.noAnswer);
    });
    if (response.type === "opaqueredirect") throw new Lost(sentences.signedOut);
    noteClock(response.headers.get("Date"));
    if (response.status === 304) return true;
    if (response.status === 403) throw new Lost(sentences.forbidden);
    if (!response.ok) throw new Lost(fill(sentences.failed, { status: response.status }));
    const text = await response.text().catch(() => {
      throw new Lost(sentences.noAnswer);
    });
    return show(new DOMParser().parseFromString(text, "text/html"), response.headers.get("ETag"));
  }

  function fail(error) {
    if (!(error instanceof Lost)) console.error(error);
    failures += 1;
    const reason = error instanceof Lost ? error.message : sentences.otherPage;
    // A restart of the server takes a moment, in which one request fails.
    if (reason === sentences.noAnswer && failures === 1) return;
    if (!lost) say(fill(sentences.lost, { reason, ago: ago(since(confirmedAt)) }));
    lost = reason;
  }

  function confirm(moment) {
    confirmedAt = moment;
    failures = older = 0;
    if (lost) say(sentences.back);
    lost = "";
  }

  async function refresh() {
    if (refreshing) return;
    clearTimeout(timer);
    refreshing = true;
    const begun = now();
    try {
      if (await load()) confirm(begun);
    } catch (error) {
      fail(error);
    }
    refreshing = false;
    showAges();
    plan();
  }

  function plan() {
    clearTimeout(timer);
    const again = failures === 1 && !lost ? 1 : seconds;
    timer = setTimeout(refresh, (document.hidden ? HIDDEN_SECONDS : again) * 1000);
  }

  // The ages

  function showAge(time) {
    let text = time.querySelector("span[data-by-script]");
    if (!text) {
      text = time.appendChild(document.createElement("span"));
      text.setAttribute("data-by-script", "");
    }
    setText(text, ` (${ago(Date.now() + clockError - new Date(time.dateTime))})`);
  }

  function showAges() {
    const shown = ago(since(confirmedAt));
    setText(age, fill(sentences.refreshed, { ago: shown }));
    if (lost) setText(offline, fill(sentences.lost, { reason: lost, ago: shown }));
    offline.hidden = !lost;
    const shownTitle = lost ? fill(sentences.lostTitle, { ago: shown, title }) : title;
    if (document.title !== shownTitle) document.title = shownTitle;
    if (!document.hidden) live.querySelectorAll("time[data-ago]").forEach(showAge);
  }

  // Marks stay while nobody sees them.
  function fadeMarks() {
    if (document.hidden) return;
    for (const row of live.querySelectorAll("[data-changed]")) {
      row.dataset.changed -= 1;
      if (row.dataset.changed <= 0) delete row.dataset.changed;
    }
  }

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && since(confirmedAt) > seconds * 1000) refresh();
    else plan();
  });
  window.addEventListener("online", refresh);
  window.addEventListener("pageshow", (event) => event.persisted && refresh());
  // From other scripts of the page: a text to say, and the statuses that it names.
  document.addEventListener("proxyhealth:say", ({ detail }) => {
    say(detail.text);
    for (const { id, after } of detail.changes ?? []) said.set(`proxy-${id}`, after);
  });
  document.addEventListener("proxyhealth:refresh", refresh);

  showAges();
  setInterval(() => {
    showAges();
    fadeMarks();
  }, 1000);
  if (performance.getEntriesByType("navigation")[0]?.type === "back_forward") refresh();
  else plan();
})();
