// Refreshes the health page, and shows a warning while it cannot: stale data must not look current.
"use strict";
(() => {
  const live = document.getElementById("proxyhealth-live");
  const offline = document.getElementById("proxyhealth-offline");
  const seconds = Number(live.dataset.refresh);
  let shownSince = new Date();

  const controls = () => [...live.querySelectorAll("a, button, summary")];

  function ago(moment) {
    const age = Math.max(0, Math.round((Date.now() - moment) / 1000));
    if (age < 120) return `${age} s ago`;
    if (age < 7200) return `${Math.round(age / 60)} min ago`;
    if (age < 172800) return `${Math.round(age / 3600)} h ago`;
    return `${Math.round(age / 86400)} d ago`;
  }

  function showAges() {
    for (const time of live.querySelectorAll("time[data-ago]")) {
      const age = time.querySelector("span") ?? time.appendChild(document.createElement("span"));
      age.textContent = ` (${ago(new Date(time.dateTime))})`;
    }
  }

  async function refresh() {
    try {
      const response = await fetch(location.href, {
        cache: "no-store",
        signal: AbortSignal.timeout(seconds * 1000),
      });
      if (!response.ok) throw new Error(`the server responded with ${response.status}`);
      if (response.redirected) throw new Error("you are no longer signed in");
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      const fresh = page.getElementById("proxyhealth-live");
      if (!fresh) throw new Error("the server responded with another page");
      const focused = controls().indexOf(document.activeElement);
      const open = [...live.querySelectorAll("details[open]")].map((details) => details.id);
      live.replaceChildren(...fresh.childNodes);
      for (const id of open) document.getElementById(id)?.setAttribute("open", "");
      controls()[focused]?.focus({ preventScroll: true }); // for keyboard users
      shownSince = new Date();
      offline.hidden = true;
    } catch (error) {
      offline.textContent =
        `This page has not been refreshed since ${shownSince.toLocaleTimeString([], { timeZoneName: "short" })}: ${error.message}. ` +
        "The statuses may be out of date.";
      offline.hidden = false;
    }
    showAges();
    setTimeout(refresh, seconds * 1000);
  }

  showAges();
  setInterval(showAges, 1000);
  setTimeout(refresh, seconds * 1000);
})();
