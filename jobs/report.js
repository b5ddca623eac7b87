"use strict";
for (const slider of document.querySelectorAll(".slider")) {
  const frames = [...slider.querySelectorAll("figure")];
  const [input, output] = [slider.querySelector("input"), slider.querySelector("output")];
  const show = () => {
    const name = frames[input.value].querySelector("figcaption").textContent;
    frames.forEach((frame, number) => { frame.hidden = number !== Number(input.value); });
    output.textContent = name;
    input.setAttribute("aria-valuetext", name);
  };
  slider.classList.add("live");
  slider.querySelector(".controls").hidden = frames.length < 2;
  input.addEventListener("input", show);
  show();
}
