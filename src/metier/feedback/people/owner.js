(() => {
  "use strict";
  const { base, token } = document.documentElement.dataset;
  const panel = document.getElementById("panel");
  const banner = document.getElementById("banner");
  const told = document.getElementById("told");

  const alarm = (text) => { banner.hidden = !text; banner.textContent = text; };

  const refresh = async () => {
    try {
      const answer = await fetch(`${base}/owner/panel`, { signal: AbortSignal.timeout(20000) });
      if (!answer.ok) throw new Error(answer.status === 503 ? "the ledger cannot be read" : `the server said ${answer.status}`);
      const html = await answer.text();
      if (panel.contains(document.activeElement) && document.activeElement.matches("button")) return;
      panel.innerHTML = html;
      alarm("");
    } catch (error) {
      alarm(`These figures are old: ${error instanceof TypeError ? "the server does not answer" : error.message}. Looking again.`);
    }
  };

  const change = async (path, body) => {
    const headers = { "content-type": "application/json", "x-metier-token": token };
    try {
      const answer = await fetch(base + path, { method: "POST", headers, body: JSON.stringify(body) });
      if (!answer.ok) throw new Error((await answer.json()).error);
    } catch (error) {
      alarm(`Not done: ${error instanceof TypeError ? "the server does not answer" : error.message}`);
      return;
    }
    document.activeElement.blur();
    await refresh();
  };

  panel.addEventListener("click", async (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.copy) {
      try {
        await navigator.clipboard.writeText(button.dataset.copy);
        told.textContent = "Copied";
        button.firstChild.textContent = "Copied";
        setTimeout(() => { button.firstChild.textContent = "Copy"; }, 1500);
      } catch {
        window.prompt("The link", button.dataset.copy);
      }
    } else if (button.dataset.revoke && window.confirm(`Revoke the link of ${button.dataset.name}?`)) {
      await change("/owner/revoke", { id: button.dataset.revoke });
    }
  });

  document.getElementById("invite").addEventListener("submit", async (event) => {
    event.preventDefault();
    const name = document.getElementById("name");
    await change("/owner/invite", { name: name.value, role: document.getElementById("role").value });
    name.value = "";
  });

  setInterval(() => { if (document.visibilityState === "visible") refresh(); }, 10000);
})();
