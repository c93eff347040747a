(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");
  const bar = document.getElementById("filters");
  if (!bar) return;
  const cases = [...document.querySelectorAll(".case")];
  const picks = [...bar.querySelectorAll("select")];
  const shown = document.getElementById("shown");
  const none = document.getElementById("none");
  const all = document.getElementById("open-all");
  const visible = () => cases.filter((one) => !one.hidden);
  const label = () => {
    const rows = visible();
    all.textContent = rows.length && rows.every((one) => one.open) ? "Close all" : "Open all";
  };
  const apply = () => {
    for (const one of cases) {
      one.hidden = picks.some((pick) => pick.value && one.dataset[pick.name] !== pick.value);
    }
    const count = visible().length;
    shown.textContent = `${count} of ${cases.length} shown`;
    none.hidden = count > 0;
    label();
  };
  picks.forEach((pick) => pick.addEventListener("change", apply));
  all.addEventListener("click", () => {
    const open = all.textContent === "Open all";
    visible().forEach((one) => { one.open = open; });
    label();
  });
  cases.forEach((one) => one.addEventListener("toggle", label));
  bar.addEventListener("submit", (event) => event.preventDefault());
  apply();
})();
