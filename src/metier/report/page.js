(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");
  const bar = document.getElementById("filters");
  if (!bar) return;
  const size = 20; // cases shown at once
  let limit = size;
  const cases = [...document.querySelectorAll(".case")];
  const picks = [...bar.querySelectorAll("select")];
  const shown = document.getElementById("shown");
  const none = document.getElementById("none");
  const all = document.getElementById("open-all");
  const more = document.getElementById("more");
  const ways = { wr: "gained", rw: "lost", rr: "right", ww: "wrong" };
  const value = (name) => picks.find((pick) => pick.name === name)?.value;
  const path = (one) => {
    const from = value("from");
    if (from === undefined) return one.dataset.path;
    const pair = one.dataset.outcomes[from] + one.dataset.outcomes[value("to")];
    return pair.includes("-") ? "" : (ways[pair] ?? "unscored");
  };
  const fits = (one) => {
    const way = value("path");
    const went = path(one);
    if (way && !(way === went || (way === "changed" && (went === "gained" || went === "lost")))) return false;
    return ["kind", "split"].every((name) => !value(name) || one.dataset[name] === value(name));
  };
  const visible = () => cases.filter((one) => !one.hidden);
  const label = () => {
    const rows = visible();
    all.textContent = rows.length && rows.every((one) => one.open) ? "Close all" : "Open all";
  };
  const apply = () => {
    const found = cases.filter(fits);
    const kept = new Set(found.slice(0, limit));
    cases.forEach((one) => { one.hidden = !kept.has(one); });
    shown.textContent = `${kept.size} of ${found.length} shown`;
    none.hidden = found.length > 0;
    more.hidden = kept.size === found.length;
    more.textContent = `Show ${Math.min(size, found.length - kept.size)} more`;
    label();
  };
  const afresh = () => { limit = size; apply(); };
  picks.forEach((pick) => pick.addEventListener("change", afresh));
  all.addEventListener("click", () => {
    const open = all.textContent === "Open all";
    visible().forEach((one) => { one.open = open; });
    label();
  });
  more.addEventListener("click", () => {
    const next = visible().length;
    limit += size;
    apply();
    visible()[next]?.querySelector("summary").focus();
  });
  document.querySelectorAll(".flips a").forEach((link) => link.addEventListener("click", () => {
    for (const pick of picks) {
      const first = pick.name === "to" ? pick.options.length - 1 : 0;
      pick.value = link.dataset[pick.name] ?? pick.options[first].value;
    }
    afresh();
  }));
  cases.forEach((one) => one.addEventListener("toggle", label));
  bar.addEventListener("submit", (event) => event.preventDefault());
  apply();
})();
