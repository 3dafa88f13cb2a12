"use strict";
const one = id => document.getElementById(id);

// Outlines, filled labels, or the scan alone.
for (const choice of document.querySelectorAll("figure .choice input")) {
  choice.addEventListener("change", () => {
    const figure = choice.closest("figure");
    figure.classList.remove("outlined", "filled", "plain");
    figure.classList.add(choice.value);
  });
}

// A row of the table picks its structure out in all pictures.
const pick = label => {
  for (const sheet of document.querySelectorAll(".sheet")) {
    const own = label === null ? [] : sheet.querySelectorAll(`path[data-label="${label}"]`);
    sheet.querySelectorAll("path.picked").forEach(path => path.classList.remove("picked"));
    own.forEach(path => path.classList.add("picked"));
    sheet.classList.toggle("picked", own.length > 0);
  }
};
let held = null;
for (const row of document.querySelectorAll("#structures tr[data-label]")) {
  row.addEventListener("mouseenter", () => pick(row.dataset.label));
  row.addEventListener("mouseleave", () => pick(held));
  // A click holds it, as the pictures are farther up.
  row.addEventListener("click", () => {
    held = held === row.dataset.label ? null : row.dataset.label;
    for (const other of document.querySelectorAll("#structures tr[data-label]")) {
      other.classList.toggle("picked", other.dataset.label === held);
    }
    pick(held);
  });
}

const say = text => { one("viewer-place").textContent = text; };
const giveUp = reason => {
  const problem = one("viewer-problem");
  problem.textContent = `${reason}; the pictures above show the same.`;
  problem.hidden = false;
  one("viewer-live").hidden = true;
};

const unpack = async base64 => {
  const packed = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
};

const startViewer = async () => {
  const script = document.createElement("script");
  script.textContent = await unpack(one("viewer-script").textContent);
  document.head.append(script);
  const { views, labels } = JSON.parse(one("viewer-data").textContent);
  const names = new Map(labels.map(label => [label.index, label.name]));
  const colours = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
  for (const { index, name, color } of labels) {
    const [r, g, b] = [1, 3, 5].map(start => parseInt(color.slice(start, start + 2), 16));
    colours.R.push(r); colours.G.push(g); colours.B.push(b); colours.A.push(255);
    colours.I.push(index); colours.labels.push(name);
  }
  const viewer = new niivue.Niivue({
    backColor: [0, 0, 0, 1], crosshairColor: [1, 0.85, 0.3, 0.7], crosshairWidth: 0.6,
    isRadiologicalConvention: false, sagittalNoseLeft: false, isColorbar: false,
    showLegend: false, multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
    multiplanarLayout: niivue.MULTIPLANAR_TYPE.ROW, logLevel: "error", fontMinPx: 16,
    fontColor: [1, 0.85, 0.3, 1], showAllOrientationMarkers: true, multiplanarPadPixels: 16,
    onLocationChange: ({ mm, values }) => {
      const index = Math.round(values[1]?.value ?? 0);
      const place = [..."xyz"].map((axis, k) => `${axis} ${mm[k].toFixed(0)}`).join(", ");
      say(`${names.get(index) ?? "no label"} · ${place} mm`);
    },
  });
  await viewer.attachTo("viewer-canvas");
  const layouts = {
    planes: viewer.sliceTypeMultiplanar, axial: viewer.sliceTypeAxial,
    coronal: viewer.sliceTypeCoronal, sagittal: viewer.sliceTypeSagittal,
    render: viewer.sliceTypeRender,
  };
  const paint = () => {
    const layout = document.querySelector("input[name=viewer-layout]:checked").value;
    const solid = layout === "render";
    const shown = one("viewer-labels").checked;
    // In three dimensions the head would hide the labels, and the fluid around it the brain.
    const seen = colours.labels.map((name, k) => (solid && name === "CSF" ? 0 : colours.A[k]));
    viewer.volumes[1].setColormapLabel({ ...colours, A: seen });
    viewer.setOpacity(0, solid && shown ? 0 : 1);
    viewer.setOpacity(1, shown ? (solid ? 1 : one("viewer-opacity").value / 100) : 0);
    viewer.setSliceType(layouts[layout]);
  };
  const show = async number => {
    const place = viewer.volumes.length ? [...viewer.scene.crosshairPos] : null;
    while (viewer.volumes.length) viewer.removeVolume(viewer.volumes[0]);
    for (const kind of ["scan", "labels"]) {
      const base64 = views[number][kind];
      const name = `${views[number].name}-${kind}.nii.gz`;
      viewer.addVolume(await niivue.NVImage.loadFromBase64({ base64, name }));
    }
    if (place) viewer.scene.crosshairPos = place;
    paint();
    viewer.createOnLocationChange();
  };
  for (const id of ["viewer-labels", "viewer-opacity"]) {
    one(id).addEventListener("input", paint);
  }
  for (const choice of document.querySelectorAll("input[name=viewer-layout]")) {
    choice.addEventListener("change", paint);
  }
  let shown = show(0);
  one("viewer-scan")?.addEventListener("change", event => {
    const number = Number(event.target.value);
    shown = shown.then(() => show(number)); // one after the other
  });
  await shown;
};

const canDraw = () => Boolean(document.createElement("canvas").getContext("webgl2"));
if (one("viewer-data")) {
  if (!canDraw()) {
    giveUp("This browser offers no WebGL2, which the viewer needs");
  } else if (!("DecompressionStream" in window)) {
    giveUp("This browser is too old for the viewer");
  } else {
    // Not before somebody comes near: unpacking takes a second.
    new IntersectionObserver(([entry], watch) => {
      if (!entry.isIntersecting) return;
      watch.disconnect();
      startViewer().catch(error => giveUp(`The viewer did not start (${error})`));
    }, { rootMargin: "400px" }).observe(one("viewer"));
  }
}
