// Adds new mails at the top. It leaves the others as they are, with the focus, the selection, and what is open.
"use strict";
(() => {
  const SECONDS = 2;
  const mails = document.getElementById("mails");
  const empty = document.getElementById("empty");
  const offline = document.getElementById("offline");
  const arrived = document.getElementById("arrived");

  async function refresh() {
    try {
      const response = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(10_000) });
      if (!response.ok) throw new Error(`the server responded with ${response.status}`);
      if (response.redirected) throw new Error("you are no longer signed in");
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      const fresh = [...page.querySelectorAll(".mail")];
      const added = fresh.filter((mail) => !document.getElementById(mail.id));
      mails.prepend(...added);
      const ids = new Set(fresh.map((mail) => mail.id));
      for (const mail of mails.querySelectorAll(".mail"))
        if (!ids.has(mail.id) && !mail.contains(document.activeElement)) mail.remove();
      empty.hidden = fresh.length > 0;
      if (added.length) arrived.textContent = added.length > 1 ? `${added.length} new mails` : "A new mail";
      offline.hidden = true;
    } catch (error) {
      offline.textContent = `New mails cannot be shown: ${error.message}.`;
      offline.hidden = false;
    }
    setTimeout(refresh, SECONDS * 1000);
  }

  setTimeout(refresh, SECONDS * 1000);
})();
