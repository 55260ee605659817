"use strict";
// What the pages do besides, where there is a script: count down to an end, and tell of what is
// new. Nothing that is on the page moves, and no text from elsewhere is ever taken for markup.

(() => {
  const main = document.getElementById("main");
  const news = document.getElementById("news");

  // Ends: "Mon 2 Jan … · 4 min 10 s left".
  const ends = [...document.querySelectorAll("time[data-ends]")].map((time) => {
    const left = document.createElement("span");
    left.className = "left";
    time.after(" ", left);
    return { at: Date.parse(time.dateTime), left };
  });
  const span = (ms) => {
    const s = Math.floor(ms / 1000), m = Math.floor(s / 60), h = Math.floor(m / 60);
    if (h > 0) return `${h} h ${m % 60} min`;
    if (m > 0) return `${m} min ${s % 60} s`;
    return `${s} s`;
  };
  const count = () => {
    for (const { at, left } of ends) {
      const ms = at - Date.now();
      left.textContent = ms > 0 ? `(${span(ms)} left)` : "(over)";
    }
  };
  if (ends.length > 0) {
    count();
    setInterval(count, 1000);
  }

  if (!main.dataset.events || !window.EventSource) return;
  const address = new URL(main.dataset.events, location.href);
  const fresh = new Set(), changed = new Set();
  const own = main.querySelector("[data-page-of]")?.dataset.pageOf;

  const tell = (text, action) => {
    const line = document.createElement("p");
    const words = document.createElement("span");
    words.textContent = text;
    const show = document.createElement("a");
    show.href = location.pathname + location.search;
    show.textContent = action;
    line.append(words, show);
    news.replaceChildren(line);
  };
  const retell = () => {
    const parts = [];
    if (fresh.size > 0) parts.push(`${fresh.size} new ${fresh.size === 1 ? "request" : "requests"}`);
    if (own && changed.has(own)) parts.push("this has changed since you opened it");
    else if (changed.size > 0) parts.push(`${changed.size} changed`);
    if (parts.length > 0) tell(parts.join(", ") + ":", "show");
    else news.replaceChildren();
  };

  const rowOf = (id) => document.querySelector(`[data-id="${CSS.escape(id)}"] [data-state]`);
  const differs = (id) => {
    if (id === own) changed.add(id);
    const row = rowOf(id);
    if (row) {
      row.textContent = "changed";
      row.classList.add("news-tag");
      changed.add(id);
    } else {
      fresh.delete(id);
    }
    retell();
  };

  let source;
  const listen = () => {
    if (source || document.hidden) return;
    source = new EventSource(address);
    source.addEventListener("request", (e) => {
      address.searchParams.set("after", e.lastEventId);
      const id = JSON.parse(e.data).id;
      if (id === own || rowOf(id)) return differs(id); // escalated, and on the page before
      if (own || !main.querySelector("[data-queue]")) return;
      fresh.add(id);
      retell();
    });
    source.addEventListener("change", (e) => {
      address.searchParams.set("after", e.lastEventId);
      differs(JSON.parse(e.data).id);
    });
  };
  // A browser has six connections to a host: tabs that nobody looks at leave theirs to the others.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && source) {
      source.close();
      source = undefined;
    }
    listen();
  });
  listen();
})();
