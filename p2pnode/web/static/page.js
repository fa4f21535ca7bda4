// Keeps a page up to date and moves the slider. Everything works without it.
"use strict";
const main = document.querySelector("main");
const edited = () => [...main.querySelectorAll("input, textarea, select")].some((field) =>
  field.type === "checkbox" || field.type === "radio" ? field.checked !== field.defaultChecked
    : field.tagName === "SELECT" ? [...field.options].some((option) => option.selected !== option.defaultSelected) && field.dataset.own
    : field.type !== "hidden" && field.value !== field.defaultValue);

async function refresh() {
  const answer = await fetch(location.href, { headers: { "X-Refresh": "1" } });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const open = [...main.querySelectorAll("details")].map((part) => part.open);
  const told = main.querySelector("[role=status]");
  main.replaceChildren(...page.querySelector("main").childNodes);
  main.querySelectorAll("details").forEach((part, n) => { if (open[n]) part.open = true; });
  if (told && !main.querySelector("[role=status]")) main.prepend(told);
  slider();
}

async function follow() {
  let after = Number(document.body.dataset.cursor);
  const about = document.body.dataset.about;
  for (;;) {
    try {
      const answer = await fetch(`/live?after=${after}`);
      if (answer.status === 401) return location.reload();
      const news = await answer.json();
      after = news.next;
      if (!news.about.length || (about && !news.about.includes(about))) continue;
      if (edited()) document.querySelector("#news").hidden = false;
      else await refresh();
    } catch {
      await new Promise((done) => setTimeout(done, 3000));
    }
  }
}

function slider() {
  const form = main.querySelector("form[data-quote]");
  if (!form) return;
  const shown = main.querySelector("#quote");
  let asked = 0;
  form.addEventListener("input", async () => {
    const mine = ++asked;
    const fields = new URLSearchParams(new FormData(form));
    for (const name of ["share", "forfeit"]) form.querySelector(`output[name=${name}]`).textContent = `${fields.get(name)} %`;
    const answer = await fetch(`${form.dataset.quote}?${fields}`);
    if (answer.ok && mine === asked) shown.innerHTML = await answer.text();
  });
}

if (document.body.dataset.cursor) follow();
document.querySelector("#news button")?.addEventListener("click", () => location.reload());
slider();
