// "Check now": sends the request, and shows its progress beside the button until it is over. The sentences come from
// the server, and from the page if the server does not answer.
"use strict";
(() => {
  const sentences = JSON.parse(document.getElementById("proxyhealth-sentences").textContent);
  const OPEN_STATES = ["queued", "running", "no worker", "unknown"];
  const GOOD_STATES = ["done", "superseded"];
  const MAX_MINUTES = 10; // for which the server knows a request
  const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

  function placeOf(button) {
    const next = button.nextElementSibling;
    if (next?.classList.contains("proxyhealth-progress")) return next;
    const place = document.createElement("span");
    place.className = "proxyhealth-progress";
    place.setAttribute("data-by-script", "");
    place.append(document.createElement("span"), " ");
    button.after(place);
    return place;
  }

  // The link may have the focus, so it stays while only the text changes.
  function fill(place, { state, text, help }) {
    place.dataset.state = state;
    if (place.firstChild.textContent !== text) place.firstChild.textContent = text;
    const link = place.querySelector("a");
    if (!help) link?.remove();
    else if (!link) place.append(Object.assign(document.createElement("a"), { href: help.url, textContent: help.text }));
  }

  // A message beside a button. Each state is said once; the text may change more often.
  function messageOf(button) {
    const place = placeOf(button);
    let said = "";
    clearTimeout(Number(place.dataset.timer)); // of an earlier request
    return {
      show(answer) {
        const { state, text, changes } = answer;
        fill(place, answer);
        if (state !== said && state !== "running") {
          document.dispatchEvent(new CustomEvent("proxyhealth:say", { detail: { text, changes } }));
        }
        said = state;
      },
      end(seconds) {
        place.dataset.timer = setTimeout(() => place.remove(), seconds * 1000);
      },
    };
  }

  async function ask(url, options = {}) {
    try {
      const response = await fetch(url, {
        cache: "no-store",
        headers: { Accept: "application/json" },
        redirect: "manual",
        signal: AbortSignal.timeout(10_000),
        ...options,
      });
      if (response.type === "opaqueredirect") return { state: "refused", text: sentences.signedOut };
      if (response.headers.get("Content-Type")?.startsWith("application/json")) return await response.json();
      if (response.status < 500) return { state: "refused", text: sentences.refused };
      return { state: "unknown", text: sentences.failed.replace("{status}", response.status) };
    } catch {
      return { state: "unknown", text: sentences.noAnswer };
    }
  }

  async function follow(url, message) {
    const end = Date.now() + MAX_MINUTES * 60_000;
    for (let pause = 0.4; Date.now() < end; pause = Math.min(1.5 * pause, 5)) {
      await wait(document.hidden ? 10 : pause);
      const answer = await ask(url);
      message.show(answer);
      if (!OPEN_STATES.includes(answer.state)) return answer.state;
    }
    return "expired";
  }

  async function check(url, body, button) {
    const message = messageOf(button);
    const answer = await ask(url, { method: "POST", body });
    message.show(answer);
    let { state } = answer;
    if (answer.progress) state = await follow(answer.progress, message);
    if (GOOD_STATES.includes(state)) document.dispatchEvent(new CustomEvent("proxyhealth:refresh"));
    message.end(GOOD_STATES.includes(state) ? 15 : 60);
  }

  // The button names what it checks. One without a name checks the chosen proxies.
  function bodyOf(form, button) {
    const body = new URLSearchParams({ csrfmiddlewaretoken: form.elements.csrfmiddlewaretoken.value });
    if (button.name) body.append(button.name, button.value);
    else for (const id of new FormData(form).getAll("proxy")) body.append("proxy", id);
    return body;
  }

  // The box that chooses all needs this script. A refresh leaves it as it is.
  const chooseAll = "[data-proxyhealth-choose-all]";
  for (const box of document.querySelectorAll(chooseAll)) box.hidden = false;
  document.addEventListener("change", ({ target }) => {
    if (!target.matches(chooseAll)) return;
    for (const box of target.form.elements) if (box.name === "proxy") box.checked = target.checked;
  });

  document.addEventListener("submit", async (event) => {
    const form = event.target;
    const button = event.submitter;
    const url = button?.getAttribute("formaction") ?? form.getAttribute("action") ?? "";
    if (!button || !url.endsWith("/health/check/")) return;
    event.preventDefault();
    if (button.getAttribute("aria-busy") === "true") return;
    const body = bodyOf(form, button);
    if (!body.has("proxy") && !body.has("all")) {
      const message = messageOf(button);
      message.show({ state: "refused", text: sentences.chooseOne });
      message.end(15);
      return;
    }
    button.setAttribute("aria-busy", "true");
    await check(url, body, button);
    button.removeAttribute("aria-busy");
  });
})();
