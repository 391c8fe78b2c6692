// The shared renderer: dense features of probe images, drawn in the browser, scrubbed through training time.
//
// One ES module without imports, given byte for byte to anywidget (Jupyter), gr.HTML (Gradio) and exported pages.
//   export default { render({ model, el, experimental }) -> cleanup }
//   model.get(key), model.set(key, value), model.save_changes(), model.on("change:key", f), model.off (optional)
//   experimental.invoke(name, message) -> Promise<[json, [bytes]]>, names: summary, image, probes, basis
// The payloads are described in workbench/views/payloads.py.
// Sections: 1 words · 2 colour · 3 safetensors · 4 similarity kernels · 5 frames · 6 DOM · 7 stage · 8 inspector ·
// 9 timeline · 10 Gram matrix · 11 view · 12 comparison · 13 render

// ---------------------------------------------------------------------------------------------------- 1 words

const REFIT = "colours-refitted"; // made here from what the basis says about itself, not written in the run

const WORDS = {
  en: {
    pca: "PCA", similarity: "Similarity", both: "All", image: "Image", mode: "What the panels show",
    overlay: "Overlay", raw: "Raw grid", smooth: "Interpolated", grid: "Grid", range: "Range",
    cosine: "cosine similarity to the selected patch", clipped: "below 0 drawn as 0",
    basis: "PCA, one basis for all steps", variance: "share of variance", noBasis: "no PCA basis yet",
    oneBasis: "PCA, one basis for all images",
    probe: "image", teacher: "teacher", student: "student", place: (image, row, col) => `image ${image}, row ${row}, col ${col}`,
    spot: (row, col) => `row ${row}, col ${col}`,
    inspector: "Inspector", fixed: (range) => `fixed range ${range}`, shortBasis: "one basis", shortCosine: "cosine",
    selected: "Selected patch", position: "Position", pixels: "Pixels", norm: "Norm", cls: "CLS cosine",
    matches: "Best match on each image", matchRule: "own image: outside the 3×3 neighbourhood",
    refitted: (step) => `colours refitted at step ${step}`, fittedOn: (first, last) => `fitted on steps ${first} to ${last}`,
    overTime: "Over time", axis: (low, high) => `axis ${low} to ${high}`, pair: "best match", clsShort: "CLS", events: "Events", noEvents: "None so far",
    play: "Play", pause: "Pause", previous: "Previous step", next: "Next step", follow: "Follow latest",
    curve: "Curve", against: "Against", none: "none", timeline: "Timeline: step shown", start: "at start",
    loading: "loading…", waiting: "Waiting for the first features",
    waitingMore: "The run writes them at its first evaluation; they appear here by themselves.",
    failed: "Could not load", retry: "Try again", help: "Keyboard", close: "Close", best: "best match",
    keys: [["← ↑ → ↓", "move the patch"], ["Shift + arrows", "move by four"], ["[  ]", "previous, next step"],
      ["Home, End", "first, last step"], ["Space", "play or pause"], ["f", "follow the latest step, or stop following"], ["1 – 9", "choose an image"], ["m", "next mode"],
      ["i", "raw or interpolated"], ["?", "this list"]],
    canvas: "Arrow keys move the selected patch.",
    gram: { title: "Gram matrix of an image", anchor: "Difference to", order: "Order", orders: { raster: "as the image is read", alike: "alike patches together" },
      reach: "Range of the difference", matrix: (step) => `Gram matrix (cosines) at ${step}, −0.2 … 1`, difference: (step, anchor) => `${step} minus ${anchor}`,
      distance: (anchor, now) => `Gram distance to ${anchor}, over steps: ${now} now`, image: (image) => `image ${image}`,
      hint: (n) => `${n} patches. Point at a cell to see its two patches; click the image to choose a patch.`,
      readout: (a, b, cosine, before) => `${a} and ${b}: cosine ${cosine}, at the anchor ${before}` },
    lead: "Click any picture: the same place is asked of every row.", bestIn: (name) => `best match in ${name}`,
    status: { live: "live", ended: "finished", stopped: "stopped", crashed: "crashed", silent: "silent" },
    kinds: { started: "started", resumed: "resumed", saved: "saved", finished: "finished", stopped: "stopped",
      "nan-skipped": "step skipped", diverged: "diverged", "bad-image": "unreadable image",
      "checkpoint-rejected": "checkpoint rejected", failed: "failed", "dense-peak": "dense peak", "dense-early-warning": "early warning", fork: "forked here",
      parent: "forked from", [REFIT]: "colours refitted" },
    texts: [],
    series: {
      "dense/patch_knn": "patch k-NN", "dense/boundary_knn": "boundary k-NN", "dense/linear_miou": "linear mIoU",
      "global/knn": "global k-NN",
      "health/cls_patch_cosine": "CLS–patch cosine", "health/near_cosine": "near-patch cosine",
      "health/far_cosine": "far-patch cosine", "health/within_variance": "within-image variance",
      "health/locality": "locality", "health/positional_share": "positional share",
      "health/positional_match": "match with noise images", "health/gram_distance": "Gram distance to a reference",
      "health/effective_rank": "effective rank", "health/norm_outliers": "norm outliers",
      "health/outlier_dimensions": "outlier dimensions", "health/rankme": "RankMe (image level)",
      "health/lidar": "LiDAR (image level)",
      "loss/total": "total loss", "loss/dino": "DINO loss", "loss/ibot": "iBOT loss", "loss/koleo": "KoLeo loss", "loss/dse": "DSE loss",
      "loss/leak": "loss of the induced stress", "induced/leak_weight": "weight of the induced stress",
      "loss/contrast": "contrastive loss", "contrast/accuracy": "positive found first",
      "contrast/positive_cosine": "cosine to the positive", "contrast/negative_cosine": "cosine to negatives",
      "contrast/spread": "spread of embeddings", "teacher/student_cosine": "teacher–student cosine",
      "teacher/student_distance": "teacher–student distance", "teacher/center_norm": "norm of the centre",
      "queue/filled": "real keys in the queue", "queue/age": "age of the keys (steps)",
      "loss/gram": "Gram loss", "teacher/entropy": "teacher entropy", "teacher/prototypes_used": "prototypes in use",
      "teacher/momentum": "teacher momentum", "gradient_norm/backbone": "gradient norm, backbone",
      "gradient_norm/dino_head": "gradient norm, DINO head", "gradient_norm/ibot_head": "gradient norm, iBOT head",
      "gradient_norm/projector": "gradient norm, projector", "gradient_norm/predictor": "gradient norm, predictor",
      "gram/weight": "weight of the Gram loss", "gram/refreshes": "Gram teacher refreshes",
      "rate/backbone_lr": "learning rate, backbone", "data/bad_images": "unreadable images",
      "rate/lr": "learning rate", "rate/last_layer_lr": "learning rate, last layer", "rate/weight_decay": "weight decay",
      "speed/images_per_second": "images per second", "speed/data_wait": "time waiting for data",
    },
  },
  zh: {
    pca: "PCA", similarity: "相似度", both: "全部", image: "原图", mode: "面板内容",
    overlay: "叠加", raw: "原始网格", smooth: "插值", grid: "网格", range: "范围",
    cosine: "与所选图块的余弦相似度", clipped: "小于 0 按 0 绘制",
    basis: "PCA，所有步共用同一组基", variance: "方差占比", noBasis: "尚无 PCA 基",
    oneBasis: "PCA，所有图像共用同一组基",
    probe: "图像", teacher: "教师网络", student: "学生网络", place: (image, row, col) => `图像 ${image}，第 ${row} 行，第 ${col} 列`,
    spot: (row, col) => `第 ${row} 行，第 ${col} 列`,
    inspector: "详情", fixed: (range) => `固定范围 ${range}`, shortBasis: "同一组基", shortCosine: "余弦",
    selected: "所选图块", position: "位置", pixels: "像素", norm: "范数", cls: "CLS 余弦",
    matches: "各图像上的最佳匹配", matchRule: "同一图像：排除 3×3 邻域",
    refitted: (step) => `颜色已在第 ${step} 步重新拟合`, fittedOn: (first, last) => `由第 ${first} 至 ${last} 步拟合`,
    overTime: "随训练变化", axis: (low, high) => `纵轴 ${low} 至 ${high}`, pair: "最佳匹配", clsShort: "CLS", events: "事件", noEvents: "暂无",
    play: "播放", pause: "暂停", previous: "上一步", next: "下一步", follow: "跟随最新",
    curve: "曲线", against: "对照", none: "无", timeline: "时间线：当前显示的步", start: "起点",
    loading: "载入中…", waiting: "正在等待第一批特征",
    waitingMore: "训练到第一次评估时写出，届时会自动显示。",
    failed: "无法载入", retry: "重试", help: "快捷键", close: "关闭", best: "最佳匹配",
    keys: [["← ↑ → ↓", "移动图块"], ["Shift + 方向键", "一次移动四格"], ["[  ]", "上一步、下一步"],
      ["Home、End", "第一步、最后一步"], ["空格", "播放或暂停"], ["f", "跟随最新一步，或停止跟随"], ["1 – 9", "选择图像"], ["m", "切换显示内容"],
      ["i", "原始网格或插值"], ["?", "显示此列表"]],
    canvas: "方向键可移动所选图块。",
    gram: { title: "一幅图像的 Gram 矩阵", anchor: "与之相减", order: "排列", orders: { raster: "按图像逐行", alike: "相似图块相邻" },
      reach: "差值范围", matrix: (step) => `${step}的 Gram 矩阵（余弦），−0.2 … 1`, difference: (step, anchor) => `${step}减${anchor}`,
      distance: (anchor, now) => `各步到${anchor}的 Gram 距离：当前 ${now}`, image: (image) => `图像 ${image}`,
      hint: (n) => `${n} 个图块。指向一个格子即可看到它的两个图块；点击图像可选择图块。`,
      readout: (a, b, cosine, before) => `${a} 与 ${b}：余弦 ${cosine}，锚定步为 ${before}` },
    lead: "点击任意图像：各行显示同一位置。", bestIn: (name) => `${name} 中的最佳匹配`,
    status: { live: "进行中", ended: "已完成", stopped: "已停止", crashed: "异常中断", silent: "无响应" },
    kinds: { started: "开始", resumed: "继续", saved: "保存", finished: "完成", stopped: "停止",
      "nan-skipped": "跳过一步", diverged: "发散", "bad-image": "图像无法读取", "checkpoint-rejected": "检查点无效",
      failed: "出错停止", "dense-peak": "稠密指标峰值", "dense-early-warning": "早期预警", fork: "由此分叉", parent: "分叉自",
      [REFIT]: "颜色重新拟合" },
    // The trainer's own sentences (training/launch.py, training/trainer.py); any other text is shown as it is.
    texts: [
      [/^recipe (\S+), seed (\d+)$/, "配方 $1，随机种子 $2"],
      [/^recipe (\S+), seed (\d+) from (.+)$/, "配方 $1，随机种子 $2，起点 $3"],
      [/^continued from step (\d+)$/, "从第 $1 步继续"],
      [/^loss not finite: step (\d+) left weights alone$/, "损失非有限值，第 $1 步未更新权重"],
      [/^gradient norm not finite: step (\d+) left weights alone$/, "梯度范数非有限值，第 $1 步未更新权重"],
      [/^loss was not finite for (\d+) steps in a row, up to step (\d+);.*$/, "截至第 $2 步，连续 $1 步损失非有限值"],
      [/^finished at step (\d+) of (\d+)$/, "第 $1 步，共 $2 步"],
      [/^stopped at step (\d+) of (\d+)$/, "第 $1 步，共 $2 步"],
      [/^stopped at step (\d+) of (\d+) because dense features decline$/, "第 $1 步，共 $2 步：稠密特征正在退化"],
      [/^early warning: (.+) have turned; scores with labels have not shown a decline$/, "$1 已转向；带标签的指标尚未下降"],
      [/^(\S+) peaked near step (\d+) and has declined since step (\d+): ([\d.]+) to ([\d.]+), confidence ([\d.]+); advised Gram teacher: step (\d+) .*$/,
        "$1 在第 $2 步附近达到峰值，自第 $3 步起下降：$4 → $5，置信度 $6；建议的 Gram 教师：第 $7 步"],
      [/^(\S+) peaked near step (\d+) and has declined since step (\d+): ([\d.]+) to ([\d.]+), confidence ([\d.]+);.*$/,
        "$1 在第 $2 步附近达到峰值，自第 $3 步起下降：$4 → $5，置信度 $6；没有可作 Gram 教师的已发布权重"],
      [/^gradient norm was not finite for (\d+) steps in a row, up to step (\d+);.*$/, "截至第 $2 步，连续 $1 步梯度范数非有限值"],
    ],
    series: {
      "dense/patch_knn": "图块 k-NN", "dense/boundary_knn": "边界图块 k-NN", "dense/linear_miou": "线性 mIoU",
      "global/knn": "全局 k-NN",
      "health/cls_patch_cosine": "CLS–图块余弦", "health/near_cosine": "邻近图块余弦",
      "health/far_cosine": "远距图块余弦", "health/within_variance": "图内方差",
      "health/locality": "局部性", "health/positional_share": "位置方差占比",
      "health/positional_match": "与噪声图的吻合度", "health/gram_distance": "与参考步的 Gram 距离",
      "health/effective_rank": "有效秩", "health/norm_outliers": "范数离群比例",
      "health/outlier_dimensions": "离群维度占比", "health/rankme": "RankMe（图像级）",
      "health/lidar": "LiDAR（图像级）",
      "loss/total": "总损失", "loss/dino": "DINO 损失", "loss/ibot": "iBOT 损失", "loss/koleo": "KoLeo 损失", "loss/dse": "DSE 损失",
      "loss/leak": "人为压力项的损失", "induced/leak_weight": "人为压力项的权重",
      "loss/contrast": "对比损失", "contrast/accuracy": "正样本排第一的比例",
      "contrast/positive_cosine": "与正样本的余弦", "contrast/negative_cosine": "与负样本的余弦",
      "contrast/spread": "嵌入的离散程度", "teacher/student_cosine": "教师与学生的余弦",
      "teacher/student_distance": "教师与学生的参数距离", "teacher/center_norm": "中心的范数",
      "queue/filled": "队列中真实键的比例", "queue/age": "键的年龄（步）",
      "loss/gram": "Gram 损失", "teacher/entropy": "教师分布的熵", "teacher/prototypes_used": "已用原型比例",
      "teacher/momentum": "教师动量", "gradient_norm/backbone": "梯度范数（骨干网络）",
      "gradient_norm/dino_head": "梯度范数（DINO 头）", "gradient_norm/ibot_head": "梯度范数（iBOT 头）",
      "gradient_norm/projector": "梯度范数（投影头）", "gradient_norm/predictor": "梯度范数（预测头）",
      "gram/weight": "Gram 损失权重", "gram/refreshes": "Gram 教师更新次数",
      "rate/backbone_lr": "学习率（骨干网络）", "data/bad_images": "无法读取的图像数",
      "rate/lr": "学习率", "rate/last_layer_lr": "末层学习率", "rate/weight_decay": "权重衰减",
      "speed/images_per_second": "每秒图像数", "speed/data_wait": "等待数据的时间占比",
    },
  },
};

/** The step in words: "step 1,200" or "第 1,200 步". */
function stepWords(words, step) {
  const number = step.toLocaleString("en-US");
  return words === WORDS.zh ? `第 ${number} 步` : `step ${number}`;
}

const wordsOf = (language) => WORDS[String(language ?? "en").startsWith("zh") ? "zh" : "en"];

/** A metric's name for people; of another backbone than the teacher, after that one's name; else the raw name. */
function seriesName(name, language) {
  const { series } = wordsOf(language), slash = name.indexOf("/");
  const other = series[name.slice(slash + 1)];
  return series[name] ?? (slash > 0 && other ? `${name.slice(0, slash)} · ${other}` : name);
}

/** An event in words: its kind, then its own text unless that says no more. */
function eventWords(words, { kind, text }) {
  const known = words.kinds[kind] ?? kind;
  if (!text || ["saved", "finished"].includes(kind)) return known;
  const [ours, sentence] = words.texts.find(([pattern]) => pattern.test(text)) ?? [];
  return `${known} · ${ours ? text.replace(ours, sentence) : text}`;
}

/** A series value with its unit: scores as per cent, cosines and the rest as plain numbers. */
function seriesValue(name, value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (isScore(name)) return `${(100 * value).toFixed(1)} %`;
  return Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(3);
}

/** Fractions of one, shown as per cent. */
const isScore = (name) => /(^|\/)((dense|global)\/.*|health\/(norm_outliers|outlier_dimensions)|teacher\/prototypes_used|contrast\/accuracy|queue\/filled|speed\/data_wait)$/.test(name);

// ---------------------------------------------------------------------------------------------------- 2 colour

/** OKLCh to linear sRGB (Ottosson 2020, "A perceptual color space for image processing"). */
function linearFromOklch(lightness, chroma, degrees) {
  const a = chroma * Math.cos((degrees * Math.PI) / 180), b = chroma * Math.sin((degrees * Math.PI) / 180);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s];
}

/** 8-bit sRGB of an OKLCh colour, chroma lowered until it lies inside the gamut. */
function srgb(lightness, chroma, degrees) {
  let linear = linearFromOklch(lightness, chroma, degrees);
  for (let c = chroma; c > 0 && linear.some((v) => v < -1e-4 || v > 1.0001); c -= 0.004) {
    linear = linearFromOklch(lightness, Math.max(c, 0), degrees);
  }
  return linear.map((v) => {
    const x = Math.min(1, Math.max(0, v));
    return Math.round(255 * (x <= 0.0031308 ? 12.92 * x : 1.055 * x ** (1 / 2.4) - 0.055));
  });
}

/** 256 RGB triples, Uint8Array [256 * 3], of a colour as a function of t in [0, 1]. */
function table(colour) {
  const rgb = new Uint8Array(768);
  for (let i = 0; i < 256; i++) rgb.set(colour(i / 255), 3 * i);
  return rgb;
}

/** Even steps of lightness from near black through violet and red to pale yellow. */
export const SEQUENTIAL = table((t) => srgb(0.14 + 0.82 * t, 0.04 + 0.145 * Math.sin(Math.PI * t ** 0.9), 285 + 165 * t));
/** Blue below the middle, orange above it, a neutral middle; equal lightness at equal distance. */
export const DIVERGING = table((t) => srgb(0.96 - 0.92 * Math.abs(t - 0.5), 0.3 * Math.abs(t - 0.5), t < 0.5 ? 250 : 50));

const RANGES = { unit: [0, 1], signed: [-1, 1] };

/** Write RGBA of cosines under a fixed range [low, high]: cosine i goes to pixel i; alpha is 0 to 255. */
export function colourCosines(cosines, [low, high], rgba, alpha = 255) {
  const scale = 255 / (high - low);
  for (let i = 0, p = 0; i < cosines.length; i++, p += 4) {
    const t = (cosines[i] - low) * scale;
    const k = 3 * (t <= 0 ? 0 : t >= 255 ? 255 : (t + 0.5) | 0);
    rgba[p] = SEQUENTIAL[k];
    rgba[p + 1] = SEQUENTIAL[k + 1];
    rgba[p + 2] = SEQUENTIAL[k + 2];
    rgba[p + 3] = alpha;
  }
}

/** Write opaque RGBA of differences a - b under the fixed range [-reach, reach]; 0 is neutral. */
export function colourDifferences(a, b, reach, rgba) {
  for (let i = 0, p = 0; i < a.length; i++, p += 4) {
    const t = 127.5 + ((a[i] - b[i]) / reach) * 127.5, k = 3 * (t <= 0 ? 0 : t >= 255 ? 255 : (t + 0.5) | 0);
    rgba[p] = DIVERGING[k];
    rgba[p + 1] = DIVERGING[k + 1];
    rgba[p + 2] = DIVERGING[k + 2];
    rgba[p + 3] = 255;
  }
}

// ---------------------------------------------------------------------------------------------------- 3 safetensors

const ARRAYS = { F32: Float32Array, F16: Uint16Array, I8: Int8Array, U8: Uint8Array, I32: Int32Array };

/** The bytes as one Uint8Array, whatever a host hands over (DataView, ArrayBuffer, typed array). */
function asBytes(data) {
  if (data instanceof ArrayBuffer) return new Uint8Array(data);
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

/**
 * Parse a safetensors file: { name: { dtype, shape, data } }; data is a view into the bytes where alignment allows.
 * F16 data stays as its 16 bits (Uint16Array); `toFloat32` turns any tensor into numbers.
 */
export function decodeTensors(buffer) {
  const bytes = asBytes(buffer);
  if (bytes.length < 8) throw new Error(`not safetensors: ${bytes.length} bytes`);
  const size = Number(new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true));
  if (size > bytes.length - 8) throw new Error(`not safetensors: a header of ${size} bytes in ${bytes.length}`);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + size)));
  const tensors = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name !== "__metadata__") tensors[name] = readTensor(name, entry, bytes, 8 + size);
  }
  return tensors;
}

function readTensor(name, { dtype, shape, data_offsets: [from, to] }, bytes, base) {
  const Type = ARRAYS[dtype];
  if (!Type) throw new Error(`tensor ${name}: dtype ${dtype}; known: ${Object.keys(ARRAYS).join(", ")}`);
  const length = shape.reduce((a, b) => a * b, 1);
  if (to - from !== length * Type.BYTES_PER_ELEMENT || base + to > bytes.length) {
    throw new Error(`tensor ${name}: ${to - from} bytes for shape [${shape}] of ${dtype}`);
  }
  const start = bytes.byteOffset + base + from;
  const aligned = start % Type.BYTES_PER_ELEMENT === 0;
  const data = aligned ? new Type(bytes.buffer, start, length) : new Type(bytes.slice(base + from, base + to).buffer);
  return { dtype, shape, data };
}

let halfTable = null;

/** All 65 536 half floats as float32, made at the first use. */
function halves() {
  if (halfTable) return halfTable;
  halfTable = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const magnitude = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
    halfTable[bits] = exponent === 31 ? (fraction ? NaN : sign * Infinity) : sign * magnitude;
  }
  return halfTable;
}

/** The tensor's values as a Float32Array (F16 is widened, others converted). */
export function toFloat32({ dtype, data }) {
  if (dtype === "F32") return data;
  if (dtype !== "F16") return Float32Array.from(data);
  const widened = new Float32Array(data.length), half = halves();
  for (let i = 0; i < data.length; i++) widened[i] = half[data[i]];
  return widened;
}

// ---------------------------------------------------------------------------------------------------- 4 similarity

// Assembled by build_kernel.py, where its two functions are described.
const KERNEL = "AGFzbQEAAAABCwFgB39/f39/f30AAwMCAAAFAwEAAQcjAwZtZW1vcnkCAAljb3NpbmVfaTgAAApjb3NpbmVfZjMyAAEK/QMC9QECAX8EewJAA0AgBEUNAf0MAAAAAAAAAAAAAAAAAAAAACEI/QwAAAAAAAAAAAAAAAAAAAAAIQlBACEHA0AgAP0AAAAgAiAHav0AAAAhCyEKIAogC/2cASAKIAv9nQH9jgH9fiAI/a4BIQggAP0AABAgAiAHav0AABAhCyEKIAogC/2cASAKIAv9nQH9jgH9fiAJ/a4BIQkgAEEgaiEAIAdBIGohByAHIAVJDQALIAMgCCAJ/a4BIQggCP0bACAI/RsBaiAI/RsCaiAI/RsDarIgASoCAJQgBpQ4AgAgAUEEaiEBIANBBGohAyAEQX9qIQQMAAsLC4MCAgF/BHsCQANAIARFDQH9DAAAAAAAAAAAAAAAAAAAAAAhCP0MAAAAAAAAAAAAAAAAAAAAACEJQQAhBwNAIAggAP0AAAAgAiAHav0AAAD95gH95AEhCCAJIAD9AAAQIAIgB2r9AAAQ/eYB/eQBIQkgCCAA/QAAICACIAdq/QAAIP3mAf3kASEIIAkgAP0AADAgAiAHav0AADD95gH95AEhCSAAQcAAaiEAIAdBwABqIQcgByAFQQJ0SQ0ACyADIAggCf3kASEIIAj9HwAgCP0fAZIgCP0fApIgCP0fA5IgASoCAJQgBpQ4AgAgAUEEaiEBIANBBGohAyAEQX9qIQQMAAsLCw==";

/** out[i] = cosine of row i and row `query`; rows [n, width] int8 or float32, inverse [n] = 1 / norm of the row. */
export function cosineRows(rows, inverse, query, out, width) {
  const base = query * width, scale = inverse[query];
  for (let i = 0, at = 0; i < out.length; i++) {
    let sum = 0;
    for (let k = 0; k < width; k++) sum += rows[at++] * rows[base + k];
    out[i] = sum * inverse[i] * scale;
  }
  return out;
}

/** Cosine similarity of one row to all rows of a frame: WebAssembly SIMD where it can be had, plain JS otherwise. */
export class Kernel {
  constructor(useWasm = true) {
    this.frame = null;
    this.wasm = useWasm ? Kernel.instantiate() : null;
  }

  static instantiate() {
    try {
      const bytes = Uint8Array.from(atob(KERNEL), (c) => c.charCodeAt(0));
      return new WebAssembly.Instance(new WebAssembly.Module(bytes)).exports;
    } catch {
      return null; // no SIMD, or a content policy without WebAssembly: the plain path gives the same numbers
    }
  }

  /** Copy the frame's rows into the kernel's memory, unless they are there. */
  bind(frame) {
    if (this.frame === frame) return;
    this.frame = frame;
    if (!this.wasm) {
      this.out = new Float32Array(frame.n);
      return;
    }
    const { memory } = this.wasm, inverseAt = frame.rows.byteLength, outAt = inverseAt + 4 * frame.n;
    const missing = outAt + 4 * frame.n - memory.buffer.byteLength;
    if (missing > 0) memory.grow(Math.ceil(missing / 65536));
    new frame.rows.constructor(memory.buffer, 0, frame.rows.length).set(frame.rows);
    new Float32Array(memory.buffer, inverseAt, frame.n).set(frame.inverse);
    this.out = new Float32Array(memory.buffer, outAt, frame.n);
    this.at = { inverse: inverseAt, out: outAt };
  }

  /** Float32Array [n], valid until the next call. */
  cosines(query) {
    const { rows, inverse, n, width } = this.frame;
    if (!this.wasm) return cosineRows(rows, inverse, query, this.out, width);
    const run = rows.BYTES_PER_ELEMENT === 1 ? this.wasm.cosine_i8 : this.wasm.cosine_f32;
    run(0, this.at.inverse, query * width * rows.BYTES_PER_ELEMENT, this.at.out, n, width, inverse[query]);
    return this.out;
  }
}

/**
 * The best match on every image: [{ image, row, col, value }]. On the query's own image its 3x3 neighbourhood is left
 * out; null where nothing is left.
 */
export function bestMatches(cosines, frame, query) {
  const { count, height, columns } = frame, size = height * columns, found = [];
  for (let image = 0; image < count; image++) {
    let best = -1, value = -Infinity;
    for (let k = 0, i = image * size; k < size; k++, i++) {
      if (!(cosines[i] > value)) continue;
      const row = (k / columns) | 0, col = k % columns;
      if (image === query.image && Math.abs(row - query.row) <= 1 && Math.abs(col - query.col) <= 1) continue;
      value = cosines[i];
      best = k;
    }
    found.push(best < 0 ? null : { image, row: (best / columns) | 0, col: best % columns, value });
  }
  return found;
}

// ---------------------------------------------------------------------------------------------------- 5 frames

/** Rows [n, dim] widened with zeros to a multiple of 32 columns; the same array when it is one already. */
function padRows(data, n, dim) {
  const width = Math.ceil(dim / 32) * 32;
  if (width === dim) return data;
  const padded = new data.constructor(n * width);
  for (let i = 0; i < n; i++) padded.set(data.subarray(i * dim, (i + 1) * dim), i * width);
  return padded;
}

/**
 * The features of all images at one step. rows [n, width] as sent (int8, or float16 widened to float32), n = images x
 * grid; value = rows * scale; inverse [n] = 1 / norm of the stored row; norms [n] in feature units; cls [images, dim].
 */
export function makeFrame(tensors, step = 0) {
  const { patches, "patches.scale": scales, cls } = tensors;
  if (!patches || patches.shape.length !== 4) throw new Error("features need a tensor `patches` [I, H, W, D]");
  const [count, height, columns, dim] = patches.shape, n = count * height * columns;
  const rows = padRows(patches.dtype === "I8" ? patches.data : toFloat32(patches), n, dim);
  const width = rows.length / n, scale = scales ? toFloat32(scales) : null;
  const inverse = new Float32Array(n), norms = new Float32Array(n);
  for (let i = 0, at = 0; i < n; i++) {
    let squares = 0;
    for (let k = 0; k < width; k++, at++) squares += rows[at] * rows[at];
    const length = Math.sqrt(squares);
    inverse[i] = length > 0 ? 1 / length : 0;
    norms[i] = length * (scale ? scale[i] : 1);
  }
  const bytes = rows.byteLength + 8 * n;
  return { step, count, height, columns, dim, width, n, rows, scale, inverse, norms, bytes,
    cls: cls ? toFloat32(cls) : null, rgb: null, rgbBasis: null };
}

/** Cosine of patch `index` and the class token of its own image; null without class tokens. */
function clsCosine(frame, index) {
  if (!frame.cls) return null;
  const { dim, width, rows, cls } = frame, image = (index / (frame.height * frame.columns)) | 0;
  let sum = 0, squares = 0;
  for (let k = 0; k < dim; k++) {
    const c = cls[image * dim + k];
    sum += rows[index * width + k] * c;
    squares += c * c;
  }
  return squares > 0 ? (sum * frame.inverse[index]) / Math.sqrt(squares) : 0;
}

function pairCosine(frame, a, b) {
  let sum = 0;
  for (let k = 0, i = a * frame.width, j = b * frame.width; k < frame.width; k++) sum += frame.rows[i++] * frame.rows[j++];
  return sum * frame.inverse[a] * frame.inverse[b];
}

/**
 * RGB [n * 3] of a frame under a basis { mean [D], components [3, D], range [3, 2] }: the projection on component c,
 * range[c] mapped to 0..255 and clipped. Computed once for a frame and basis.
 */
export function pcaColours(frame, basis) {
  if (frame.rgbBasis === basis) return frame.rgb;
  const { n, dim, width, rows, scale } = frame, { mean, components, range } = basis;
  const rgb = new Uint8Array(3 * n), gain = [], shift = [];
  for (let c = 0; c < 3; c++) {
    let centre = 0;
    for (let k = 0; k < dim; k++) centre += mean[k] * components[c * dim + k];
    const span = range[2 * c + 1] - range[2 * c];
    gain.push(span > 0 ? 255 / span : 0); // constant features: middle grey
    shift.push(span > 0 ? -(centre + range[2 * c]) * gain[c] + 0.5 : 128);
  }
  const red = components.subarray(0, dim), green = components.subarray(dim, 2 * dim), blue = components.subarray(2 * dim);
  for (let i = 0; i < n; i++) {
    let r = 0, g = 0, b = 0;
    for (let k = 0, at = i * width; k < dim; k++, at++) {
      const value = rows[at];
      r += value * red[k];
      g += value * green[k];
      b += value * blue[k];
    }
    const s = scale ? scale[i] : 1;
    rgb[3 * i] = clip255(r * s * gain[0] + shift[0]);
    rgb[3 * i + 1] = clip255(g * s * gain[1] + shift[1]);
    rgb[3 * i + 2] = clip255(b * s * gain[2] + shift[2]);
  }
  frame.rgb = rgb;
  frame.rgbBasis = basis;
  return rgb;
}

const clip255 = (x) => (x < 0 ? 0 : x > 255 ? 255 : x | 0);

/** Steps held in memory, least recently shown out first; loads what is wanted, then what is near it. */
export class Frames {
  constructor(load, { budget = 256 * 2 ** 20, changed = () => {} } = {}) {
    Object.assign(this, { load, budget, changed, steps: [], wanted: null, kept: null, held: new Map(), pending: new Set() });
    this.failures = new Map();
    this.bytes = 0;
    this.closed = false;
  }

  setSteps(steps) {
    this.steps = steps;
    this.fill();
  }

  /** Ask for a step; returns its frame, or undefined while it is on its way. */
  want(step) {
    this.wanted = step;
    const frame = this.held.get(step);
    if (frame) {
      this.held.delete(step); // moves it to the young end
      this.held.set(step, frame);
    }
    this.fill();
    return frame;
  }

  /** Ask for a step that stays in memory whatever else is wanted; returns its frame, or undefined while it is on its way. */
  keep(step) {
    this.kept = step;
    this.fill();
    return this.held.get(step);
  }

  /** The held frame whose step is nearest, for drawing while the wanted one loads. */
  nearest(step) {
    let best;
    for (const held of this.held.values()) {
      if (!best || Math.abs(held.step - step) < Math.abs(best.step - step)) best = held;
    }
    return best;
  }

  /** The next step to load: the wanted and the kept one always, others only while they fit the budget. */
  nextStep() {
    const free = (step) => !this.held.has(step) && !this.pending.has(step) && (this.failures.get(step) ?? 0) < 3;
    for (const first of [this.wanted, this.kept]) if (first !== null && this.steps.includes(first) && free(first)) return first;
    const size = this.held.size ? this.bytes / this.held.size : 0;
    if (this.bytes + size * (this.pending.size + 1) > this.budget) return undefined;
    const centre = this.wanted ?? this.steps[this.steps.length - 1];
    return this.steps.filter(free).sort((a, b) => Math.abs(a - centre) - Math.abs(b - centre))[0];
  }

  fill() {
    while (!this.closed && this.pending.size < 2) {
      const step = this.nextStep();
      if (step === undefined) return;
      this.pending.add(step);
      this.fetch(step);
    }
  }

  async fetch(step) {
    try {
      this.hold(await this.load(step));
    } catch (error) {
      this.failures.set(step, (this.failures.get(step) ?? 0) + 1);
      this.changed(step, error);
      await new Promise((resolve) => setTimeout(resolve, 600));
    }
    this.pending.delete(step);
    this.fill();
  }

  hold(frame) {
    if (this.closed) return;
    this.held.set(frame.step, frame);
    this.bytes += frame.bytes;
    for (const [step, old] of this.held) {
      if (this.bytes <= this.budget || this.held.size === 1) break;
      if (step === frame.step || step === this.wanted || step === this.kept) continue;
      this.held.delete(step);
      this.bytes -= old.bytes;
    }
    this.changed(frame.step);
  }

  close() {
    this.closed = true;
    this.held.clear();
  }
}

// ---------------------------------------------------------------------------------------------------- 6 DOM

/** An element; text goes through textContent, so that no label is ever read as markup. */
function h(tag, { class: className, text, on, data, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  Object.assign(element.dataset, data);
  for (const [name, listener] of Object.entries(on ?? {})) element.addEventListener(name, listener);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set an element's text only when it differs (no needless layout). */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const ICONS = {
  play: "M5 3.5v9l7.5-4.5z", pause: "M4.5 3.5h2.4v9H4.5zM9.1 3.5h2.4v9H9.1z",
  previous: "M11.5 3.5v9L5.6 8zM3.9 3.5h1.5v9H3.9z", next: "M4.5 3.5v9L10.4 8zM10.6 3.5h1.5v9h-1.5z",
};

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

function iconButton(name, label, click) {
  return h("button", { class: "dfw-icon", type: "button", "aria-label": label, title: label, on: { click } }, icon(name));
}

function selectBox(label, options, value, change) {
  const select = h("select", { on: { change: () => change(select.value) } });
  for (const [key, text] of options) select.append(h("option", { value: key, text }));
  select.value = value;
  return h("label", { class: "dfw-field" }, h("span", { text: label }), select);
}

/** A canvas of the element's size in device pixels, with a context scaled to CSS pixels. */
function fitCanvas(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}

/** Values of the root's CSS custom properties, for drawing on a canvas in the colours of the theme. */
function themeColours(root) {
  const style = getComputedStyle(root), read = (name) => style.getPropertyValue(`--dfw-${name}`).trim();
  return Object.fromEntries(["ink", "muted", "line", "accent", "match", "second", "panel", "faint"].map((k) => [k, read(k)]));
}

// ---------------------------------------------------------------------------------------------------- 7 stage

const FADE = 110; // milliseconds
const NEWS = 12_000; // milliseconds that a change of the colours is announced
const QUERY = "#ef4444", MATCH = "#f59e0b"; // the same on light and dark: they lie on photos

/** Pixels of one overlay, a patch each, mixed while they cross-fade. */
class Overlay {
  constructor(rows, columns) {
    this.canvas = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
    this.context = this.canvas.getContext("2d");
    this.pixels = new ImageData(columns, rows);
    this.from = null;
  }

  /** `write(rgba)` fills the new pixels; `fade` in 0..1 mixes them with those shown when it was 0. */
  draw(write, fade) {
    const { data } = this.pixels;
    if (fade === 0) this.from = Uint8ClampedArray.from(data);
    write(data);
    if (fade < 1 && this.from) {
      for (let i = 0; i < data.length; i++) data[i] = this.from[i] + (data[i] - this.from[i]) * fade;
    }
    this.context.putImageData(this.pixels, 0, 0);
  }
}

/** One picture (`kind`: image, pca or similarity): an empty canvas that takes pointer and keys; a Layer draws it. */
class Picture {
  constructor(view, image, kind, hero = false) {
    Object.assign(this, { view, image, kind, hero, label: "", overlay: null, shown: false });
    this.photo = h("canvas", { class: "dfw-photo", tabindex: "-1", role: "application", width: 1, height: 1 });
    this.element = h("div", { class: "dfw-pic", data: { kind } }, this.photo);
    this.listen();
  }

  listen() {
    const { view, photo } = this, pick = (event) => this.patchAt(event);
    photo.addEventListener("pointerdown", (event) => {
      photo.setPointerCapture(event.pointerId);
      view.pin(pick(event), event.timeStamp);
    });
    photo.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) view.pin(pick(event), event.timeStamp);
      else view.hover(pick(event), event.timeStamp);
    });
    photo.addEventListener("pointerleave", () => view.hover(null));
    photo.addEventListener("focus", () => view.focusImage(this.image));
  }

  /** The patch under a pointer event (fractional coordinates), clamped to the grid. */
  patchAt(event) {
    const box = this.photo.getBoundingClientRect(), [rows, columns] = this.view.grid;
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const col = Math.floor(((event.clientX - box.left) / box.width) * columns);
    return { image: this.image, row: clamp(row, 0, rows - 1), col: clamp(col, 0, columns - 1) };
  }

  /** New overlay pixels, or none when `write` is null. */
  draw(rows, columns, write, fade) {
    this.shown = Boolean(write);
    if (!write) return;
    if (this.overlay?.canvas.width !== columns || this.overlay.canvas.height !== rows) this.overlay = new Overlay(rows, columns);
    this.overlay.draw(write, fade);
  }
}

/**
 * One canvas for a group of pictures: photos (scaled once, at layout), overlays and marks. A canvas for each picture
 * made a scrubbed frame about three times as long under software rendering.
 */
class Layer {
  constructor(parent) {
    this.parent = parent;
    this.canvas = h("canvas", { class: "dfw-layer", "aria-hidden": "true" });
    this.pictures = [];
  }

  /** Take over the pictures inside the parent, in their current places. */
  place(pictures) {
    const { parent, canvas } = this, box = parent.getBoundingClientRect();
    if (canvas.parentNode !== parent) parent.append(canvas);
    this.context = fitCanvas(canvas, box.width, box.height);
    Object.assign(canvas.style, { width: `${box.width}px`, height: `${box.height}px` });
    this.size = [box.width, box.height];
    this.back = document.createElement("canvas");
    this.backContext = fitCanvas(this.back, box.width, box.height);
    this.backContext.imageSmoothingQuality = "high";
    this.pictures = pictures.map((picture) => {
      const { left, top, width, height } = picture.element.getBoundingClientRect();
      return { picture, left: left - box.left, top: top - box.top, width, height };
    });
  }

  /** Draw the photos that are not there yet, or no longer the right ones. */
  drawPhotos(bitmaps) {
    for (const place of this.pictures) {
      const bitmap = bitmaps.get(place.picture.image);
      if (!bitmap || place.bitmap === bitmap) continue;
      place.bitmap = bitmap;
      this.backContext.drawImage(bitmap, place.left, place.top, place.width, place.height);
    }
  }

  /** `marks(picture)` gives [[patch, colour], …] to outline. */
  draw(smooth, marks, [rows, columns], bitmaps) {
    const { context } = this;
    this.drawPhotos(bitmaps);
    context.clearRect(0, 0, ...this.size);
    context.drawImage(this.back, 0, 0, ...this.size);
    context.imageSmoothingEnabled = smooth;
    for (const { picture, left, top, width, height } of this.pictures) {
      if (picture.shown) context.drawImage(picture.overlay.canvas, left, top, width, height);
      for (const [patch, colour] of marks(picture)) {
        const w = width / columns, t = height / rows;
        outline(context, left + patch.col * w, top + patch.row * t, w, t, colour);
      }
    }
  }
}

/** A 2-pixel outline around a patch with a white hairline on both sides, so that it reads on any picture. */
function outline(context, x, y, width, height, colour) {
  for (const [style, line] of [["#ffffff", 4], [colour, 2]]) {
    context.strokeStyle = style;
    context.lineWidth = line;
    context.strokeRect(x - 1, y - 1, width + 2, height + 2);
  }
}

const signed = (x, digits) => x.toFixed(digits).replace("-", "−");
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));

/**
 * How many probes in a row, and whether a probe's pictures stand side by side or one above the other, so that
 * pictures are as large as they can be in width x height CSS pixels. Sizes are of one picture.
 */
export function layoutGrid({ probes, pictures, width, height, aspect, gap = 14, inner = 4, caption = 24 }) {
  let best = { side: 0 };
  for (let columns = 1; columns <= probes; columns++) {
    const rows = Math.ceil(probes / columns), holes = rows * columns - probes;
    for (const beside of pictures > 1 ? [false, true] : [false]) {
      const across = beside ? pictures : 1, down = beside ? 1 : pictures;
      const wide = ((width - gap * (columns - 1)) / columns - inner * (across - 1)) / across;
      const tall = ((height - gap * (rows - 1)) / rows - caption - inner * (down - 1)) / down;
      const side = Math.floor(Math.min(wide, tall / aspect));
      const score = side * (1 - 0.04 * holes);
      if (score > (best.score ?? 0)) best = { columns, rows, beside, side, score };
    }
  }
  return best;
}

/** The grid of linked panels. */
class Stage {
  constructor(view) {
    this.view = view;
    this.grid = h("div", { class: "dfw-grid" });
    this.hero = h("div", { class: "dfw-hero" });
    this.legend = h("div", { class: "dfw-legend" });
    this.news = h("span", { class: "dfw-news", "aria-live": "polite" });
    this.element = h("section", { class: "dfw-stage", "aria-label": view.words.mode }, this.hero, this.grid);
    this.layers = { grid: new Layer(this.grid) };
    this.pictures = [];
    this.captions = [];
    this.bitmaps = new Map();
    this.asked = new Set();
  }

  /** What is shown of each image; beside the large panels the small ones leave out the plain photo. */
  kinds() {
    const all = this.hasHero() ? ["pca", "similarity"] : ["image", "pca", "similarity"];
    return { both: all, pca: ["pca"], similarity: ["similarity"], image: ["image"] }[this.view.mode];
  }

  /** With many images, all three panels of the image under the pointer are drawn large above the others. */
  hasHero() {
    const { view } = this;
    return view.isRun && view.mode === "both" && view.summary.probes.count > 3;
  }

  /** Make the panels anew: after a mode change or when the images are first known. */
  build() {
    const { view } = this, { probes } = view.summary;
    this.pictures = [];
    this.captions = [];
    this.grid.replaceChildren(...Array.from({ length: probes.count }, (_, image) => this.probe(image)));
    this.buildHero();
    this.buildLegend();
    this.layout();
  }

  buildHero() {
    const { view } = this, { words } = view;
    this.hero.hidden = !this.hasHero();
    this.hero.replaceChildren();
    this.heroCaptions = {};
    view.placeInspector(this.hero.hidden ? view.body : this.hero);
    if (this.hero.hidden) return;
    const figures = ["image", "pca", "similarity"].map((kind) => {
      const name = h("b", { text: kind === "image" ? "" : words[kind] }), text = h("span", { class: "dfw-words" });
      const key = h("span", { class: "dfw-key" });
      this.heroCaptions[kind] = { name, text, key };
      return h("figure", {}, this.picture(view.pinned.image, kind, true).element, h("figcaption", {}, name, text, key));
    });
    this.heroPics = h("div", { class: "dfw-hero-pics" }, ...figures);
    this.layers.hero = new Layer(this.heroPics);
    this.hero.prepend(this.heroPics);
  }

  /** The fixed range with its colours. */
  ramp() {
    const [low, high] = RANGES[this.view.range], bar = h("canvas", { class: "dfw-bar256", width: 256, height: 1, "aria-hidden": "true" });
    const ramp = new ImageData(256, 1);
    colourCosines(Float32Array.from({ length: 256 }, (_, i) => i / 255), [0, 1], ramp.data);
    bar.getContext("2d").putImageData(ramp, 0, 0);
    return [h("span", { class: "dfw-end", text: low < 0 ? "−1" : "0" }), bar, h("span", { class: "dfw-end", text: String(high) })];
  }

  picture(image, kind, hero = false) {
    const picture = new Picture(this.view, image, kind, hero), { probes } = this.view.summary;
    picture.element.style.aspectRatio = `${probes.image[1]} / ${probes.image[0]}`;
    this.pictures.push(picture);
    return picture;
  }

  probe(image) {
    const pictures = this.kinds().map((kind) => this.picture(image, kind));
    const text = this.view.caption(image), value = h("span", { class: "dfw-value" });
    this.captions.push(value);
    if (!this.asked.has(image)) this.fetchPhoto(image);
    const caption = h("figcaption", {}, h("b", { text: String(image + 1) }), h("span", { class: "dfw-words", text, title: text }), value);
    return h("figure", { class: "dfw-probe", data: { image } },
      h("div", { class: "dfw-pics" }, ...pictures.map((picture) => picture.element)), caption);
  }

  async fetchPhoto(image) {
    this.asked.add(image);
    try {
      const [, [png]] = await this.view.invoke("image", { index: image });
      const bitmap = await createImageBitmap(new Blob([asBytes(png)], { type: "image/png" }));
      this.bitmaps.set(image, bitmap);
      this.view.schedule();
    } catch (error) {
      this.asked.delete(image);
      this.view.fail(error);
    }
  }

  layout() {
    const { view, grid } = this, { probes } = view.summary, box = this.element.getBoundingClientRect();
    if (box.width < 40) return;
    const height = view.isRun ? Math.max(this.element.clientHeight - 4, 200) : view.model.get("height") ?? 460, aspect = probes.image[0] / probes.image[1];
    const share = (tall) => layoutGrid({ probes: probes.count, pictures: this.kinds().length, width: box.width, height: tall, aspect });
    const fit = this.hasHero() ? this.shareWithHero(box.width, height, aspect, share) : share(height);
    grid.style.gridTemplateColumns = `repeat(${fit.columns}, max-content)`;
    grid.style.setProperty("--dfw-side", `${Math.max(fit.side, 48)}px`);
    grid.classList.toggle("dfw-beside", fit.beside);
    for (const [name, layer] of Object.entries(this.layers)) {
      layer.place(this.pictures.filter((picture) => picture.hero === (name === "hero")));
    }
  }

  /** Size the large panels so that all pictures together own the most pixels; returns the grid's share. */
  shareWithHero(width, height, aspect, share) {
    const gap = 14, caption = 24, inspector = this.view.inspecting ? 260 + 2 * gap : 0, count = this.view.summary.probes.count;
    const widest = Math.floor((width - inspector - 2 * gap) / 3);
    let best = null, first = null;
    for (let side = Math.min(96, widest); side <= widest; side += 4) {
      const rest = height - side * aspect - caption - gap, fit = share(rest);
      if (!fit.side || (first && fit.side < 56)) break;
      first ??= { ...fit, hero: side };
      const spread = inspector ? 1 : 0.5 + (1.5 * side) / width; // alone in its row, it should fill it
      const area = (3 * side ** 2 + count * this.kinds().length * fit.side ** 2) * spread;
      if (side >= 1.3 * fit.side && !(best?.area >= area)) best = { ...fit, hero: side, area };
    }
    best ??= first ?? { ...share(height), hero: 96 };
    this.hero.style.setProperty("--dfw-side", `${best.hero}px`);
    this.hero.style.height = `${Math.round(best.hero * aspect) + caption}px`;
    return best;
  }

  /** What the colours mean, once for all panels. */
  buildLegend() {
    const { view } = this, { words } = view, kinds = this.hasHero() ? [] : this.kinds(), parts = []; // large panels say it below themselves
    if (kinds.includes("pca")) parts.push(this.pcaLegend());
    if (kinds.includes("similarity")) {
      const title = view.range === "unit" ? `${words.cosine} (${words.clipped})` : words.cosine;
      parts.push(h("span", { class: "dfw-key", title }, h("span", { text: words.cosine }), ...this.ramp()));
    }
    this.heading = h("span", { class: "dfw-heading" });
    this.legend.replaceChildren(this.heading, ...parts, this.news);
    if (!this.hasHero()) return;
    this.heroCaptions.pca.key.replaceChildren(...this.shares());
    this.heroCaptions.similarity.key.replaceChildren(...this.ramp());
  }

  pcaLegend() {
    return h("span", { class: "dfw-key" }, h("span", { text: this.basisWords() }), ...this.shares());
  }

  /** Share of variance of each colour channel, in per cent. */
  shares() {
    const { words, explained } = this.view;
    return (explained ?? []).slice(0, 3).map((share, i) => h("span", { class: "dfw-share", title: words.variance },
      h("i", { class: "dfw-swatch", data: { channel: "rgb"[i] } }), `${Math.round(100 * share)}${i === 2 ? " %" : ""}`));
  }

  /** A line in the legend for a while. */
  announce(text) {
    say(this.news, text);
    clearTimeout(this.quiet);
    this.quiet = setTimeout(() => say(this.news, ""), NEWS);
  }

  /** Which basis, and what it was fitted on. */
  basisWords() {
    const { words, basis, isRun, fitted } = this.view;
    if (!basis) return words.noBasis;
    if (!isRun) return words.oneBasis;
    const [first, last] = [fitted[0], fitted[fitted.length - 1]].map((step) => step?.toLocaleString("en-US"));
    return fitted.length > 1 ? `${words.basis} (${words.fittedOn(first, last)})` : words.basis;
  }

  /** Draw overlays and marks of the frame. `cosines` and `matches` belong to the query. */
  draw(frame, query, cosines, matches, fade) {
    const { view } = this, size = frame.height * frame.columns;
    const alpha = Math.round(255 * view.opacity); // in the pixels: CSS opacity would cost a layer a panel
    const rgb = view.basis && this.kinds().includes("pca") ? pcaColours(frame, view.basis) : null;
    for (const picture of this.pictures) {
      if (picture.hero) picture.image = query.image; // the large panels follow the query
      const from = picture.image * size;
      let write = null;
      if (picture.kind === "pca" && rgb) write = (rgba) => copyRgb(rgb, from, size, rgba, alpha);
      if (picture.kind === "similarity") {
        write = (rgba) => colourCosines(cosines.subarray(from, from + size), RANGES[view.range], rgba, alpha);
      }
      picture.draw(frame.height, frame.columns, write, fade);
      picture.photo.tabIndex = this.inTabOrder(picture) ? 0 : -1;
    }
    this.drawLayers(query, matches);
    if (this.hasHero()) this.captionHero(frame, query);
    if (view.isRun) say(this.heading, `${view.role} · ${stepWords(view.words, frame.step)}`);
    this.captions.forEach((value, image) => say(value, matches[image] ? signed(matches[image].value, 2) : ""));
    for (const figure of this.grid.children) {
      figure.classList.toggle("dfw-chosen", Number(figure.dataset.image) === query.image);
    }
  }

  drawLayers(query, matches) {
    const { view } = this;
    const marks = ({ image }) => [[matches[image], MATCH], [image === query.image ? query : null, QUERY]].filter(([patch]) => patch);
    for (const layer of Object.values(this.layers)) if (layer.pictures.length) layer.draw(view.smooth, marks, view.grid, this.bitmaps);
  }

  /** One tab stop on the stage: the similarity (or only) panel of the selected image, the large one if there is one. */
  inTabOrder(picture) {
    const kinds = this.kinds();
    if (this.hasHero()) return picture.hero && picture.kind === "similarity";
    return picture.image === this.view.pinned.image && picture.kind === kinds[kinds.length - 1];
  }

  /** Under each large panel: which image, or what is shown at which step under which basis or fixed range. */
  captionHero(frame, query) {
    const { view, heroCaptions: captions } = this, { words } = view, step = stepWords(words, frame.step);
    const range = view.range === "unit" ? "0…1" : "−1…1", caption = view.caption(query.image);
    say(captions.image.name, `${words.probe} ${query.image + 1}`);
    say(captions.image.text, caption);
    say(captions.pca.text, `${step} · ${view.basis ? words.shortBasis : words.noBasis}`);
    say(captions.similarity.text, `${step} · ${words.shortCosine}`);
    captions.image.text.title = caption;
    captions.pca.text.title = `${view.role} · ${step} · ${this.basisWords()}`;
    captions.similarity.text.title = `${view.role} · ${step} · ${words.cosine} · ${words.fixed(range)}`;
  }

  /** Text alternatives, for the pinned patch only: hovering would flood a screen reader. */
  describe(frame, sentence) {
    const { view } = this;
    for (const picture of this.pictures) {
      const what = view.words[picture.kind], caption = view.caption(picture.image);
      const label = `${view.words.probe} ${picture.image + 1}${caption ? `: ${caption}` : ""}. ${what}, `
        + `${stepWords(view.words, frame.step)}. ${sentence} ${view.words.canvas}`;
      if (picture.label !== label) picture.photo.setAttribute("aria-label", (picture.label = label));
    }
  }

  focus(image) {
    this.pictures.find((picture) => picture.image === image)?.photo.focus({ preventScroll: true });
  }
}

function copyRgb(rgb, from, size, rgba, alpha) {
  for (let i = 0, s = 3 * from, p = 0; i < size; i++, s += 3, p += 4) {
    rgba[p] = rgb[s];
    rgba[p + 1] = rgb[s + 1];
    rgba[p + 2] = rgb[s + 2];
    rgba[p + 3] = alpha;
  }
}

// ---------------------------------------------------------------------------------------------------- 8 inspector

/** The right rail: the selected patch, its best matches, its similarity over time, and the run's events. */
class Inspector {
  constructor(view) {
    this.view = view;
    const { words } = view;
    this.crop = h("canvas", { class: "dfw-crop", "aria-hidden": "true" });
    this.facts = Object.fromEntries(["position", "pixels", "norm", "cls"].map((key) => [key, h("dd", { text: "–" })]));
    const list = h("dl", {});
    for (const [key, value] of Object.entries(this.facts)) list.append(h("dt", { text: words[key] }), value);
    this.whose = h("span", { class: "dfw-phase" });
    this.matches = h("ol", { class: "dfw-matches" });
    this.curve = h("canvas", { class: "dfw-mini", role: "img", "aria-label": words.overTime });
    this.events = h("ol", { class: "dfw-log" });
    this.pairKey = h("b", {});
    this.clsKey = h("b", {});
    const keys = h("p", { class: "dfw-mini-key" },
      h("span", { class: "dfw-pair" }, h("span", { text: words.pair }), this.pairKey),
      h("span", { class: "dfw-cls" }, h("span", { text: words.clsShort }), this.clsKey));
    const mark = (which) => h("i", { class: "dfw-mark", data: { mark: which } });
    this.element = h("aside", { class: "dfw-inspector", "aria-label": words.inspector },
      h("div", {}, h("h3", {}, mark("query"), words.selected, this.whose), h("div", { class: "dfw-patch" }, this.crop, list),
        h("h3", { text: words.overTime }), keys, this.curve),
      h("div", {}, h("h3", { title: words.matchRule }, mark("match"), words.matches), this.matches,
        h("h3", { text: words.events }), this.events));
  }

  build() {
    const { view } = this, { probes } = view.summary;
    this.matches.replaceChildren();
    this.rows = Array.from({ length: probes.count }, (_, image) => {
      const bar = h("i", {}), value = h("span", { class: "dfw-number" }), place = h("span", { class: "dfw-place" });
      const button = h("button", { type: "button", on: { click: () => view.goToMatch(image) } },
        h("b", { text: String(image + 1) }), h("span", { class: "dfw-meter" }, bar), value, place);
      this.matches.append(h("li", {}, button));
      return { bar, value, place, button };
    });
    this.buildEvents();
  }

  buildEvents() {
    const known = eventsKey(this.view.events);
    if (known === this.listed) return;
    this.listed = known;
    const { view } = this, { words } = view, saved = view.events.filter(({ kind }) => kind === "saved").slice(0, -1);
    const events = view.events.filter((event) => !saved.includes(event)).reverse().slice(0, 30);
    this.events.replaceChildren(...events.map((event) =>
      h("li", { data: { level: event.level } }, h("button", { type: "button", title: eventWords(words, event), on: { click: () => view.scrubTo(event.step) } },
        h("span", { class: "dfw-number", text: event.step.toLocaleString("en-US") }), h("span", { class: "dfw-words", text: eventWords(words, event) })))));
    if (!events.length) this.events.append(h("li", { class: "dfw-none", text: words.noEvents }));
  }

  draw(frame, query, index, matches) {
    const { view, facts } = this, { probes } = view.summary, { words } = view, cls = clsCosine(frame, index);
    const patch = [probes.image[0] / frame.height, probes.image[1] / frame.columns];
    say(this.whose, ` · ${words.probe} ${query.image + 1}`);
    say(facts.position, words.spot(query.row + 1, query.col + 1));
    say(facts.pixels, `x ${Math.round(query.col * patch[1])}–${Math.round((query.col + 1) * patch[1])}, `
      + `y ${Math.round(query.row * patch[0])}–${Math.round((query.row + 1) * patch[0])}`);
    say(facts.norm, frame.norms[index].toPrecision(3));
    say(facts.cls, cls === null ? "–" : signed(cls, 3));
    matches.forEach((match, image) => {
      const { bar, value, place, button } = this.rows[image];
      button.disabled = !match;
      bar.style.transform = `scaleX(${match ? clamp(match.value, 0, 1) : 0})`;
      say(value, match ? signed(match.value, 3) : "–");
      say(place, match ? `${match.row + 1}, ${match.col + 1}` : "");
    });
    this.drawCrop(query, frame);
  }

  /** The patch with two patches around it, enlarged. */
  drawCrop(query, frame) {
    const bitmap = this.view.stage.bitmaps.get(query.image);
    if (!bitmap) return;
    const side = 72, context = fitCanvas(this.crop, side, side), reach = 2.5;
    const h0 = bitmap.height / frame.height, w0 = bitmap.width / frame.columns;
    context.fillStyle = this.view.colours.line;
    context.fillRect(0, 0, side, side);
    const span = 2 * reach, unit = side / span;
    context.drawImage(bitmap, (query.col + 0.5 - reach) * w0, (query.row + 0.5 - reach) * h0, span * w0, span * h0, 0, 0, side, side);
    outline(context, 2 * unit, 2 * unit, unit, unit, QUERY);
  }

  /** Cosine of the query with today's best match and with CLS, at every step in memory. */
  drawCurve(query, index, match) {
    const { view } = this, box = this.curve.getBoundingClientRect();
    if (!box.width) return;
    const frames = [...view.frames.held.values()].sort((a, b) => a.step - b.step), { colours } = view;
    const context = fitCanvas(this.curve, box.width, box.height), [first, last] = view.timeline.domain();
    const curves = this.curvesOf(frames, index, match), ticks = cosineTicks(curves.flatMap(({ values }) => values), view.range);
    const low = ticks[0], left = 30;
    const x = (step) => left + ((step - first) / Math.max(last - first, 1)) * (box.width - left - 6);
    const y = (value) => 5 + (1 - (value - low) / (1 - low)) * (box.height - 10);
    context.font = "10px system-ui, sans-serif";
    context.fillStyle = colours.muted;
    context.strokeStyle = colours.line;
    context.textAlign = "right";
    for (const tick of ticks) {
      line(context, [[left, y(tick)], [box.width - 6, y(tick)]]);
      context.fillText(tickText(tick), left - 6, y(tick) + 3.5);
    }
    context.strokeStyle = colours.faint;
    line(context, [[x(view.step), 2], [x(view.step), box.height - 2]]);
    for (const { colour, values, key } of curves) {
      context.strokeStyle = colour;
      context.lineWidth = 1.75;
      line(context, frames.flatMap((f, i) => (values[i] === null ? [] : [[x(f.step), y(values[i])]])));
      const now = values[frames.findIndex((f) => f.step === view.step)] ?? null;
      say(key, now === null ? "" : signed(now, 2));
    }
    const told = curves.map(({ name, key }) => `${name} ${key.textContent || "–"}`).join(", ");
    this.curve.setAttribute("aria-label", `${view.words.overTime}: ${told} (${view.words.axis(tickText(low), "1")})`);
  }

  /** What the chart shows: cosine with CLS and, where there is one, with the match, one value a frame (null: none). */
  curvesOf(frames, index, match) {
    const { words, colours } = this.view;
    const curves = [{ name: words.clsShort, colour: colours.accent, key: this.clsKey, values: frames.map((f) => clsCosine(f, index)) }];
    if (!match || !frames.length) return curves;
    const other = (match.image * frames[0].height + match.row) * frames[0].columns + match.col;
    return [...curves, { name: words.pair, colour: colours.match, key: this.pairKey, values: frames.map((f) => pairCosine(f, index, other)) }];
  }
}

/** Rising ticks of an axis for cosines up to 1: from −1 under the signed range, else from 0 or, below it, the least value. */
export function cosineTicks(values, range) {
  if (range === "signed") return [-1, 0, 1];
  const least = values.reduce((low, value) => (value < low ? value : low), 0);
  if (least > -1e-3) return [0, 1];
  const low = Math.max(-1, Math.floor(least * 10) / 10);
  return low > -0.25 ? [low, 1] : [low, 0, 1]; // two labels closer than this would touch
}

const tickText = (tick) => signed(tick, Number.isInteger(tick) ? 0 : 1);

/** Differs when events were added (they are append-only, or all read anew) or colours were refitted. */
const eventsKey = (events) => JSON.stringify([events.length, events[0], events[events.length - 1],
  events.filter(({ kind }) => kind === REFIT).map(({ step }) => step)]);

function line(context, points) {
  context.beginPath();
  points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
}

// ---------------------------------------------------------------------------------------------------- 9 timeline

const PREFERRED = ["dense/patch_knn", "dense/linear_miou", "global/knn", "health/within_variance", "health/cls_patch_cosine",
  "health/locality", "health/near_cosine", "health/far_cosine", "health/effective_rank", "health/norm_outliers", "loss/total"];
const ERROR = ":se"; // the series KEY:se holds the standard errors of the series KEY
const MARGIN = { left: 52, right: 52, top: 18, bottom: 28 };

/** The strip along the bottom: a curve under the step axis, event markers, the steps in memory, the playhead. */
class Timeline {
  constructor(view) {
    this.view = view;
    const { words } = view;
    this.playButton = iconButton("play", words.play, () => view.togglePlay());
    this.followButton = h("button", { class: "dfw-toggle", type: "button", text: words.follow, on: { click: () => view.setFollow(!view.follow) } });
    this.readout = h("span", { class: "dfw-readout" });
    this.loading = h("span", { class: "dfw-loading" });
    this.choices = h("div", { class: "dfw-choices" });
    const bar = h("div", { class: "dfw-tl-bar" },
      h("div", { class: "dfw-transport" }, iconButton("previous", `${words.previous}  [`, () => view.stepBy(-1)), this.playButton,
        iconButton("next", `${words.next}  ]`, () => view.stepBy(1))),
      this.readout, this.followButton, this.loading, this.choices);
    this.canvas = h("canvas", { class: "dfw-curve", "aria-hidden": "true" });
    this.markers = h("div", { class: "dfw-markers" });
    this.ghost = h("div", { class: "dfw-ghost", hidden: true }, h("span", {}));
    this.head = h("div", { class: "dfw-head" }, h("i", {}));
    this.track = h("div", { class: "dfw-track", role: "slider", tabindex: "0", "aria-label": words.timeline },
      this.canvas, this.markers, this.ghost, this.head);
    this.element = h("section", { class: "dfw-timeline", "aria-label": words.timeline }, bar, this.track);
    this.listen();
  }

  listen() {
    const { view, track } = this;
    const scrub = (event) => view.ready && view.scrubTo(this.stepAt(event.clientX), event.timeStamp);
    track.addEventListener("pointerdown", (event) => {
      if (event.target.closest("button")) return;
      track.setPointerCapture(event.pointerId);
      track.classList.add("dfw-dragging");
      scrub(event);
    });
    track.addEventListener("pointermove", (event) => {
      if (track.classList.contains("dfw-dragging")) scrub(event);
      this.showGhost(event.clientX);
    });
    for (const end of ["pointerup", "pointercancel"]) track.addEventListener(end, () => track.classList.remove("dfw-dragging"));
    track.addEventListener("pointerleave", () => (this.ghost.hidden = true));
  }

  /** [first, last] step of the axis: what was planned, or what there is. */
  domain() {
    const { summary } = this.view, last = [summary.run?.steps ?? 0, ...summary.steps.slice(-1)];
    for (const series of Object.values(summary.series)) last.push(series.step[series.step.length - 1] ?? 0);
    return [Math.min(0, summary.steps[0] ?? 0), Math.max(1, ...last)];
  }

  x(step) {
    const [first, last] = this.domain();
    return MARGIN.left + ((step - first) / (last - first)) * (this.width - MARGIN.left - MARGIN.right);
  }

  /** The step with features nearest to a pointer. */
  stepAt(clientX) {
    const { steps } = this.view.summary, x = clientX - this.track.getBoundingClientRect().left;
    return steps.reduce((best, step) => (Math.abs(this.x(step) - x) < Math.abs(this.x(best) - x) ? step : best), steps[0]);
  }

  /** Series offered: the usual dense-health ones first, then the rest by name; standard errors go with their series. */
  names() {
    const all = Object.keys(this.view.summary.series).filter((name) => !name.endsWith(ERROR)).sort();
    return [...PREFERRED.filter((name) => all.includes(name)), ...all.filter((name) => !PREFERRED.includes(name))];
  }

  /** The choices anew where other series are offered (an open menu keeps its focus); markers where events came. */
  build() {
    const names = this.names(), offered = names.join("\n");
    if (offered !== this.offered) this.buildChoices(names);
    this.offered = offered;
    this.buildMarkers();
    this.redraw();
  }

  buildChoices(names) {
    const { view } = this, { words, chosen } = view, has = (name) => names.includes(name);
    const companion = has("health/cls_patch_cosine") ? "health/cls_patch_cosine" : "";
    view.curves = { main: has(chosen.main) ? chosen.main : names[0] ?? "",
      against: chosen.against === "" || has(chosen.against) ? chosen.against : companion };
    const change = (which) => (value) => {
      chosen[which] = view.curves[which] = value;
      this.redraw();
      view.schedule();
    };
    this.mainValue = h("span", { class: "dfw-now" });
    this.againstValue = h("span", { class: "dfw-now dfw-second" });
    const options = names.map((name) => [name, seriesName(name, view.model.get("language"))]);
    this.choices.replaceChildren(
      selectBox(words.curve, options, view.curves.main, change("main")), this.mainValue,
      selectBox(words.against, [["", words.none], ...options], view.curves.against ?? "", change("against")), this.againstValue);
    this.choices.hidden = !names.length;
  }

  buildMarkers() {
    const { view } = this, { words } = view, known = eventsKey(view.events);
    if (known === this.marked) return;
    this.marked = known;
    const rank = ({ level, kind }) => (level === "error" ? 0 : level === "warn" ? 1 : kind === "saved" ? 3 : 2);
    const shown = [...view.events].sort((a, b) => rank(a) - rank(b) || b.step - a.step).slice(0, 120).reverse();
    this.markers.replaceChildren(...shown.map((event) => h("button", {
      type: "button", tabindex: "-1", title: `${stepWords(words, event.step)} · ${eventWords(words, event)}`,
      "aria-label": `${stepWords(words, event.step)}: ${eventWords(words, event)}`,
      data: { level: event.level, kind: event.kind, step: event.step }, on: { click: () => view.scrubTo(event.step) },
    })));
  }

  /** Draw all that does not move with the playhead. */
  redraw() {
    const box = this.track.getBoundingClientRect();
    if (box.width < 60) return;
    this.width = box.width;
    this.height = box.height;
    const context = fitCanvas(this.canvas, box.width, box.height), { view } = this;
    context.font = "11px system-ui, 'Noto Sans', 'Noto Sans CJK SC', sans-serif";
    this.drawAxis(context);
    if (view.curves.against) this.drawSeries(context, view.curves.against, view.colours.second, true);
    if (view.curves.main) this.drawSeries(context, view.curves.main, view.colours.accent, false);
    this.drawHeld(context);
    for (const marker of this.markers.children) marker.style.left = `${this.x(Number(marker.dataset.step))}px`;
    this.moveHead();
  }

  drawAxis(context) {
    const { colours } = this.view, [first, last] = this.domain(), base = this.height - MARGIN.bottom;
    context.fillStyle = colours.muted;
    context.textAlign = "center";
    for (const step of niceTicks(first, last, Math.max(2, Math.floor(this.width / 130)))) {
      context.strokeStyle = colours.line;
      line(context, [[this.x(step), MARGIN.top], [this.x(step), base]]);
      context.fillText(step.toLocaleString("en-US"), this.x(step), this.height - 5);
    }
  }

  /** One series with its own axis: area and ticks on the left for the main one, a thin line and right ticks else. */
  drawSeries(context, name, colour, second) {
    const { step: steps, value: values } = this.view.summary.series[name], base = this.height - MARGIN.bottom;
    const points = steps.map((step, i) => [step, values[i]]).filter(([, value]) => Number.isFinite(value));
    if (!points.length) return;
    const other = second ? [] : this.otherRun(name), band = second ? [] : this.band(name, points);
    const [low, high, ticks] = axisOf([...points, ...other, ...band.flatMap(([step, a, b]) => [[step, a], [step, b]])].map(([, value]) => value));
    const y = (value) => base - ((value - low) / (high - low)) * (base - MARGIN.top);
    const path = points.map(([step, value]) => [this.x(step), y(value)]);
    context.textAlign = second ? "left" : "right";
    context.fillStyle = second ? colour : this.view.colours.muted;
    const text = (value) => (isScore(name) ? `${+(100 * value).toFixed(1)} %` : String(+value.toPrecision(3)));
    for (const tick of ticks) context.fillText(text(tick), second ? this.width - MARGIN.right + 8 : MARGIN.left - 8, y(tick) + 4);
    if (!second && !band.length) this.fillUnder(context, path, base, colour);
    this.fillBand(context, band.map(([step, a, b]) => [this.x(step), y(a), y(b)]), colour);
    if (other.length) this.drawOther(context, other.map(([step, value]) => [this.x(step), y(value)]));
    context.strokeStyle = colour;
    context.lineWidth = second ? 1.25 : 2;
    context.lineJoin = "round";
    line(context, path);
    context.lineWidth = 1;
    if (!second) this.drawPeak(context, points, path, colour);
  }

  /** [step, value - error, value + error] where the series has standard errors; that of a share stays in [0, 1]. */
  band(name, points) {
    const errors = this.view.summary.series[name + ERROR];
    if (!errors) return [];
    const of = new Map(errors.step.map((step, i) => [step, errors.value[i]]));
    const kept = (value) => (isScore(name) ? Math.min(1, Math.max(0, value)) : value);
    return points.filter(([step]) => Number.isFinite(of.get(step)))
      .map(([step, value]) => [step, kept(value - of.get(step)), kept(value + of.get(step))]);
  }

  fillBand(context, band, colour) {
    if (!band.length) return;
    context.save();
    context.globalAlpha = 0.16;
    context.fillStyle = colour;
    context.beginPath();
    band.forEach(([x, low], i) => (i ? context.lineTo(x, low) : context.moveTo(x, low)));
    for (const [x, , high] of [...band].reverse()) context.lineTo(x, high);
    context.fill();
    context.restore();
  }

  /** The same series of the run that is compared with, at its place on this axis. */
  otherRun(name) {
    const overlay = this.view.model.get("overlay"), series = overlay?.series[name], [first, last] = this.domain();
    if (!series) return [];
    return series.step.map((step, i) => [step + overlay.offset, series.value[i]])
      .filter(([step, value]) => Number.isFinite(value) && step >= first && step <= last);
  }

  drawOther(context, path) {
    context.save();
    context.setLineDash([5, 4]);
    context.strokeStyle = this.view.model.get("overlay").colour;
    context.lineWidth = 1.5;
    line(context, path);
    const [x, y] = path[path.length - 1];
    context.fillStyle = context.strokeStyle;
    context.textAlign = "left";
    context.fillText("B", x + 5, y + 4);
    context.restore();
  }

  fillUnder(context, path, base, colour) {
    context.save();
    context.globalAlpha = 0.1;
    context.fillStyle = colour;
    context.beginPath();
    context.moveTo(path[0][0], base);
    for (const [x, y] of path) context.lineTo(x, y);
    context.lineTo(path[path.length - 1][0], base);
    context.fill();
    context.restore();
  }

  /** A ring at the highest value, when it is not the last: dense features peak, then may decay. */
  drawPeak(context, points, path, colour) {
    const best = points.reduce((b, point, i) => (point[1] > points[b][1] ? i : b), 0);
    if (best === 0 || best === points.length - 1) return;
    context.beginPath();
    context.arc(path[best][0], path[best][1], 3.5, 0, 7);
    context.fillStyle = this.view.colours.panel;
    context.fill();
    context.strokeStyle = colour;
    context.lineWidth = 1.5;
    context.stroke();
    context.lineWidth = 1;
  }

  /** Like a video's buffer bar: one tick a step with features, in the accent once it is in memory. */
  drawHeld(context) {
    const { view } = this, { steps } = view.summary, y = this.height - MARGIN.bottom + 5;
    const gap = steps.length > 1 ? this.x(steps[1]) - this.x(steps[0]) : 8, width = clamp(gap * 0.6, 1.5, 6);
    for (const step of steps) {
      context.fillStyle = view.frames.held.has(step) ? view.colours.accent : view.colours.faint;
      context.fillRect(this.x(step) - width / 2, y, width, 3);
    }
  }

  showGhost(clientX) {
    const { view } = this;
    if (!view.summary?.steps.length) return;
    const step = this.stepAt(clientX), main = view.curves.main;
    this.ghost.hidden = false;
    this.ghost.style.transform = `translateX(${this.x(step)}px)`;
    this.ghost.classList.toggle("dfw-left", this.x(step) > this.width - 220);
    const value = main ? ` · ${seriesName(main, view.model.get("language"))} ${seriesValue(main, this.valueAt(main, step))}` : "";
    say(this.ghost.firstChild, stepWords(view.words, step) + value);
  }

  /** The series' last value at or before a step. */
  valueAt(name, step) {
    const { step: steps, value } = this.view.summary.series[name];
    let found;
    for (let i = 0; i < steps.length && steps[i] <= step; i++) found = value[i];
    return found;
  }

  moveHead() {
    if (this.width) this.head.style.transform = `translateX(${this.x(this.view.step)}px)`;
  }

  /** All that moves with the playhead. */
  update(shown) {
    const { view } = this, { words, summary, step } = view, [, last] = this.domain();
    this.moveHead();
    say(this.readout, words === WORDS.zh ? `第 ${step.toLocaleString("en-US")} / ${last.toLocaleString("en-US")} 步`
      : `step ${step.toLocaleString("en-US")} of ${last.toLocaleString("en-US")}`);
    say(this.loading, shown === step ? "" : words.loading);
    for (const [which, element] of [["main", this.mainValue], ["against", this.againstValue]]) {
      const name = view.curves[which];
      if (!element) continue;
      if (!name) { say(element, ""); continue; }
      const start = this.valueAt(name, summary.series[name].step[0]);
      say(element, seriesValue(name, this.valueAt(name, step)));
      element.title = `${words.start}: ${seriesValue(name, start)}`;
    }
    this.track.setAttribute("aria-valuemin", summary.steps[0] ?? 0);
    this.track.setAttribute("aria-valuemax", summary.steps[summary.steps.length - 1] ?? 0);
    this.track.setAttribute("aria-valuenow", step);
    this.track.setAttribute("aria-valuetext", stepWords(words, step));
  }

  showPlaying(playing, follow) {
    const label = playing ? this.view.words.pause : this.view.words.play;
    this.playButton.replaceChildren(icon(playing ? "pause" : "play"));
    this.playButton.setAttribute("aria-label", label);
    this.playButton.title = label;
    this.followButton.setAttribute("aria-pressed", String(follow));
  }
}

/** At most `count` round numbers from first to last. */
function niceTicks(first, last, count) {
  const rough = (last - first) / Math.max(count, 1), power = 10 ** Math.floor(Math.log10(rough || 1));
  const size = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough) ?? power;
  const ticks = [];
  for (let t = Math.ceil(first / size) * size; t <= last + 1e-9 * size; t += size) ticks.push(+t.toPrecision(12));
  return ticks;
}

/** [low, high, two or three ticks] of a value axis around the values. */
function axisOf(values) {
  let low = Infinity, high = -Infinity; // not Math.min(...values): arguments are limited to some 100,000
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const pad = Math.max((high - low) * 0.12, 1e-3 * Math.abs(high), 1e-6);
  const bottom = low - pad, top = high + pad;
  const ticks = [2, 3, 4, 6].map((count) => niceTicks(bottom, top, count)).find((found) => found.length >= 2);
  return [bottom, top, ticks ?? [low]];
}

// ---------------------------------------------------------------------------------------------------- 10 Gram matrix

const MOST = 256; // patches of an image that take part; of larger grids an even subset
const REACHES = [0.25, 0.5, 1];
const GRAM_RANGE = [-0.2, 1];
const MATRICES = 6; // kept in memory
const SLICE = 12; // milliseconds of a frame for distances of other steps

/** Places of at most about `most` patches of a grid, evenly spread: every stride-th row and column. */
export function chosenPlaces(rows, columns, most = MOST) {
  const stride = Math.ceil(Math.sqrt((rows * columns) / most)), places = [];
  for (let row = (stride - 1) >> 1; row < rows; row += stride) {
    for (let col = (stride - 1) >> 1; col < columns; col += stride) places.push(row * columns + col);
  }
  return places;
}

/** Cosines [n * n] between the patches `places` of image `image` of a frame. */
export function gramMatrix(frame, image, places) {
  const { rows, inverse, width } = frame, n = places.length, first = image * frame.height * frame.columns;
  const gram = new Float32Array(n * n);
  for (let i = 0; i < n; i++) {
    const a = first + places[i];
    for (let j = i; j < n; j++) {
      const b = first + places[j];
      let sum = 0;
      for (let k = 0, p = a * width, q = b * width; k < width; k++) sum += rows[p++] * rows[q++];
      gram[i * n + j] = gram[j * n + i] = sum * inverse[a] * inverse[b];
    }
  }
  return gram;
}

/** Mean squared difference of two matrices: the Gram distance (DINOv3, equation 2, as a mean). */
export function gramDistance(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] - b[i]) ** 2;
  return sum / a.length;
}

/** Rows by their entry in the leading eigenvector of the centred matrix, found by power iteration: alike ones meet. */
export function alikeOrder(gram, n) {
  const mean = new Float32Array(n).map((_, i) => gram.subarray(i * n, (i + 1) * n).reduce((a, b) => a + b, 0) / n);
  const all = mean.reduce((a, b) => a + b, 0) / n;
  let vector = Float32Array.from({ length: n }, (_, i) => Math.sin(i + 1));
  for (let turn = 0; turn < 40; turn++) {
    const next = new Float32Array(n);
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) next[i] += (gram[i * n + j] - mean[i] - mean[j] + all) * vector[j];
    const length = Math.hypot(...next) || 1;
    vector = next.map((x) => x / length);
  }
  return Array.from(vector.keys()).sort((a, b) => vector[a] - vector[b]);
}

/**
 * The Gram matrix of one image at the chosen step, its difference to an anchor step, and how far it has moved over all
 * steps. Hovering a cell shows its two patches on the image; hovering the image shows the patch's row.
 */
class GramPlate {
  constructor(view) {
    this.view = view;
    this.cell = null; // [i, j] among the places, pointed at; j is null for a place on the image
    this.matrices = new Map();
    this.distances = new WeakMap();
    const { gram } = view.words;
    this.controls = h("div", { class: "dfw-controls dfw-gram-controls" });
    this.photo = this.panel("photo");
    this.matrix = this.panel("gram");
    this.difference = this.panel("difference");
    this.curve = this.panel("distance");
    this.readout = h("p", { class: "dfw-gram-readout" });
    const panels = [this.photo, this.matrix, this.difference, this.curve].map(({ node }) => node);
    this.element = h("section", { class: "dfw-gram", "aria-label": gram.title }, h("div", { class: "dfw-gram-body" }, ...panels), this.readout);
    this.element.plate = this; // for tests
    this.listen();
  }

  panel(kind) {
    const canvas = h("canvas", { role: "img" }), caption = h("figcaption", {}), frame = h("div", { class: "dfw-gram-frame" }, canvas);
    return { kind, canvas, caption, frame, node: h("figure", { class: "dfw-gram-panel", data: { kind } }, frame, caption) };
  }

  listen() {
    const { view } = this, leave = () => this.point(null);
    for (const { frame } of [this.matrix, this.difference]) {
      frame.addEventListener("pointermove", (event) => this.point(this.cellAt(event, frame)));
      frame.addEventListener("pointerleave", leave);
      frame.addEventListener("pointerup", (event) => {
        this.point(this.cellAt(event, frame));
        if (this.cell) view.pin({ image: view.pinned.image, ...this.spot(this.cell[0]) });
      });
    }
    const { frame } = this.photo;
    frame.addEventListener("pointerdown", (event) => this.pinAt(event));
    frame.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) this.pinAt(event);
      else this.point([this.nearest(this.patchAt(event)), null]);
    });
    frame.addEventListener("pointerleave", leave);
  }

  point(cell) {
    this.cell = cell;
    this.view.schedule();
  }

  // -- what is shown

  get anchorStep() {
    const { steps } = this.view.summary, wish = this.view.model.get("anchor");
    return steps.includes(wish) ? wish : steps[0];
  }

  get order() {
    return this.view.model.get("order") === "alike" ? "alike" : "raster";
  }

  get reach() {
    const wish = this.view.model.get("reach");
    return REACHES.includes(wish) ? wish : 0.5;
  }

  get places() {
    const [rows, columns] = this.view.grid, key = `${rows},${columns}`;
    if (this.placesKey !== key) Object.assign(this, { placesKey: key, placesMade: chosenPlaces(rows, columns) });
    return this.placesMade;
  }

  /** Row and column of the k-th place. */
  spot(k) {
    const columns = this.view.grid[1], place = this.places[k];
    return { row: Math.floor(place / columns), col: place % columns };
  }

  /** The place that lies nearest to a patch: its index. */
  nearest({ row, col }) {
    let best = 0, least = Infinity;
    for (let k = 0; k < this.places.length; k++) {
      const spot = this.spot(k), far = (spot.row - row) ** 2 + (spot.col - col) ** 2;
      if (far < least) [best, least] = [k, far];
    }
    return best;
  }

  matrixOf(frame) {
    const { image } = this.view.pinned, key = `${frame.step}:${image}`, known = this.matrices.get(key);
    this.matrices.delete(key);
    const entry = known?.frame === frame ? known : { frame, gram: gramMatrix(frame, image, this.places) };
    this.matrices.set(key, entry);
    if (this.matrices.size > MATRICES) this.matrices.delete(this.matrices.keys().next().value);
    return entry.gram;
  }

  /** [[step, distance to the anchor]] of the frames in memory; not all at once: the rest comes with the next frames. */
  distancesTo(anchor) {
    const { view } = this, key = `${view.pinned.image}:${anchor.step}`, until = performance.now() + SLICE, points = [];
    const base = this.matrixOf(anchor);
    for (const frame of view.frames.held.values()) {
      let own = this.distances.get(frame);
      if (own?.anchor !== anchor) this.distances.set(frame, (own = { anchor, of: new Map() }));
      if (!own.of.has(key) && performance.now() < until) own.of.set(key, gramDistance(gramMatrix(frame, view.pinned.image, this.places), base));
      if (own.of.has(key)) points.push([frame.step, own.of.get(key)]);
      else view.schedule();
    }
    return points.sort((a, b) => a[0] - b[0]);
  }

  // -- pointing

  cellAt(event, frame) {
    if (!this.drawn) return null;
    const box = frame.getBoundingClientRect(), n = this.places.length;
    const at = (offset, size) => clamp(Math.floor((offset / size) * n), 0, n - 1);
    return [at(event.clientY - box.top, box.height), at(event.clientX - box.left, box.width)].map((k) => this.drawn.order[k]);
  }

  patchAt(event) {
    const [rows, columns] = this.view.grid, box = this.photo.frame.getBoundingClientRect();
    const at = (offset, size, count) => clamp(Math.floor((offset / size) * count), 0, count - 1);
    return { row: at(event.clientY - box.top, box.height, rows), col: at(event.clientX - box.left, box.width, columns) };
  }

  pinAt(event) {
    this.cell = null;
    this.view.pin({ image: this.view.pinned.image, ...this.patchAt(event) });
  }

  // -- drawing

  draw(now) {
    const { view } = this;
    if (!now || !this.element.clientWidth) return;
    this.label();
    const anchor = view.frames.keep(this.anchorStep), gram = this.matrixOf(now), base = anchor ? this.matrixOf(anchor) : null;
    const n = this.places.length, order = this.orderOf(base ?? gram, n);
    this.drawn = { now, anchor, gram, base, order };
    this.fit();
    this.paint(this.matrix.canvas, n, (rgba) => colourCosines(permuted(gram, order), GRAM_RANGE, rgba));
    this.difference.node.hidden = !base;
    if (base) this.paint(this.difference.canvas, n, (rgba) => colourDifferences(permuted(gram, order), permuted(base, order), this.reach, rgba));
    if (anchor) this.drawCurve(this.distancesTo(anchor));
    this.drawPhoto();
    this.describe();
  }

  orderOf(gram, n) {
    if (this.order === "raster") return Array.from({ length: n }, (_, i) => i);
    if (this.orderedFor !== gram) Object.assign(this, { orderedFor: gram, orderMade: alikeOrder(gram, n) });
    return this.orderMade;
  }

  /** Squares as large as the room allows. */
  fit() {
    const [tall, wide] = this.view.summary.probes.image, { clientWidth, clientHeight } = this.element;
    const side = Math.max(120, Math.floor(Math.min((clientWidth - 80) / 3, clientHeight - 190)));
    const photo = this.photo.frame.style;
    photo.width = `${Math.floor(tall > wide ? (side * wide) / tall : side)}px`;
    photo.aspectRatio = `${wide} / ${tall}`;
    for (const { frame } of [this.matrix, this.difference]) Object.assign(frame.style, { width: `${side}px`, aspectRatio: "1" });
  }

  paint(canvas, n, write) {
    if (canvas.width !== n) Object.assign(canvas, { width: n, height: n });
    const pixels = new ImageData(n, n);
    write(pixels.data);
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  /** The image with the two patches that are pointed at; the row of the first is marked beside the matrices. */
  drawPhoto() {
    const { view, drawn } = this, { clientWidth: width, clientHeight: height } = this.photo.frame, [rows, columns] = view.grid;
    const bitmap = view.stage.bitmaps.get(view.pinned.image), pair = this.cell ?? [this.nearest(view.pinned), null];
    const context = fitCanvas(this.photo.canvas, width, height);
    if (bitmap) context.drawImage(bitmap, 0, 0, width, height);
    pair.forEach((k, which) => {
      if (k === null) return;
      const { row, col } = this.spot(k), w = width / columns, t = height / rows;
      outline(context, col * w, row * t, w, t, [QUERY, MATCH][which]);
    });
    const at = (drawn.order.indexOf(pair[0]) + 0.5) / this.places.length;
    for (const { frame } of [this.matrix, this.difference]) frame.style.setProperty("--row", `${100 * at}%`);
  }

  drawCurve(points) {
    const { view } = this, { clientWidth: width, clientHeight: height } = this.curve.frame, { steps } = view.summary;
    this.points = points;
    if (width < 40) return;
    const context = fitCanvas(this.curve.canvas, width, height), span = Math.max(1, steps[steps.length - 1] - steps[0]);
    const top = points.reduce((most, [, y]) => Math.max(most, y), 1e-6);
    const x = (step) => 8 + ((step - steps[0]) / span) * (width - 16), y = (value) => height - 6 - (value / top) * (height - 14);
    context.strokeStyle = view.colours.muted;
    line(context, [[x(this.drawn.now.step), 0], [x(this.drawn.now.step), height]]);
    context.strokeStyle = view.colours.accent;
    context.lineWidth = 2;
    line(context, points.map(([step, value]) => [x(step), y(value)]));
  }

  // -- words

  label() {
    const { view } = this, { words } = view, { gram } = words, { steps } = view.summary;
    const key = JSON.stringify([steps, this.anchorStep, this.order, this.reach]);
    if (key === this.labelled) return;
    this.labelled = key;
    const set = (name, read) => (value) => {
      view.model.set(name, read(value));
      view.tell({});
      view.schedule();
    };
    this.controls.replaceChildren(
      selectBox(gram.anchor, steps.map((step) => [step, stepWords(words, step)]), this.anchorStep, set("anchor", Number)),
      selectBox(gram.order, Object.entries(gram.orders), this.order, set("order", String)),
      selectBox(gram.reach, REACHES.map((reach) => [reach, `−${reach} … ${reach}`]), this.reach, set("reach", Number)));
  }

  describe() {
    const { view, drawn: { now, anchor, gram, base } } = this, { words } = view, said = words.gram, n = this.places.length;
    const from = anchor ? stepWords(words, anchor.step) : "…", step = stepWords(words, now.step);
    const texts = { photo: said.image(view.pinned.image + 1), gram: said.matrix(step), difference: said.difference(step, from),
      distance: said.distance(from, base ? signed(gramDistance(gram, base), 4) : "…") };
    for (const { kind, canvas, caption } of [this.photo, this.matrix, this.difference, this.curve]) {
      say(caption, texts[kind]);
      if (canvas.getAttribute("aria-label") !== texts[kind]) canvas.setAttribute("aria-label", texts[kind]);
    }
    const [i, j] = this.cell ?? [null, null];
    if (j === null) return say(this.readout, said.hint(n));
    const spots = [i, j].map((k) => this.spot(k)).map(({ row, col }) => words.spot(row + 1, col + 1));
    say(this.readout, said.readout(...spots, signed(gram[i * n + j], 3), base ? signed(base[i * n + j], 3) : "…"));
  }
}

/** A matrix with its rows and columns in another order. */
function permuted(gram, order) {
  const n = order.length, out = new Float32Array(n * n);
  for (let i = 0, at = 0; i < n; i++) for (let j = 0; j < n; j++) out[at++] = gram[order[i] * n + order[j]];
  return out;
}

// ---------------------------------------------------------------------------------------------------- 11 view

const MODES = ["both", "pca", "similarity", "image"];
const PLAY_INTERVAL = 220; // milliseconds a step
const ANSWER_LIMIT = 120_000; // milliseconds for an answer; a notebook's default of 3 s is short for a busy kernel

/** State and actions of one mounted view; `frame` below is the only place that draws. */
class View {
  constructor(model, el, invoke) {
    Object.assign(this, { model, el, invoke, summary: null, basis: null, explained: null, hovered: null });
    Object.assign(this, { opacity: 0.85, smooth: false, range: "unit", follow: true, playing: null, fadeFrom: 0 });
    this.refits = []; // steps at which the basis, and with it the colours of all steps, changed
    this.fitted = []; // steps that the basis was fitted on
    this.curves = { main: "", against: "" };
    this.chosen = {}; // the curves that the person chose; otherwise the best there are so far
    this.isRun = model.get("view") !== "patches"; // with a timeline
    this.mode = MODES.includes(model.get("mode")) ? model.get("mode") : "both";
    this.step = 0;
    this.pinned = { image: 0, row: 0, col: 0 };
    this.kernel = new Kernel();
    this.timings = { kernel: 0, paint: 0 };
    this.abort = new AbortController();
    this.frames = new Frames((step) => this.loadStep(step), { changed: (step, error) => this.stepLoaded(step, error) });
    this.root = h("div", { class: "dfw", tabindex: "-1", "data-lm-suppress-shortcuts": "true", data: { view: this.isRun ? "run" : "patches" } });
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.root.view = this;
    el.append(this.root);
    this.buildShell();
    this.watch();
    this.start();
  }

  get words() {
    return wordsOf(this.model.get("language"));
  }

  /** Whose features these are, in words: the teacher's unless the run says otherwise. */
  get role() {
    const role = this.summary?.run?.backbone ?? "teacher";
    return { teacher: this.words.teacher, student: this.words.student }[role] ?? role;
  }

  /** There are pictures and at least one step of features. */
  get ready() {
    return Boolean(this.summary?.probes && this.summary.steps.length);
  }

  get grid() {
    return this.summary.probes.grid;
  }

  caption(image) {
    const caption = this.summary.probes.captions?.[image];
    if (!caption) return "";
    return typeof caption === "string" ? caption : caption[this.words === WORDS.zh ? "zh" : "en"] ?? caption.en ?? "";
  }

  /** What happened, in the order of steps: the run's events, and where the colours changed. */
  get events() {
    const refits = this.refits.map((step) => ({ step, level: "info", kind: REFIT, text: "" }));
    return refits.length ? [...this.summary.events, ...refits].sort((a, b) => a.step - b.step) : this.summary.events;
  }

  // -- building

  buildShell() {
    const { words } = this;
    this.stage = new Stage(this);
    this.plate = this.isRun ? new GramPlate(this) : null;
    this.inspector = this.isRun ? new Inspector(this) : null;
    this.timeline = this.isRun ? new Timeline(this) : null;
    this.title = h("div", { class: "dfw-title" });
    this.live = h("div", { class: "dfw-hidden", role: "status", "aria-live": "polite" });
    this.status = h("p", { class: "dfw-statusline", hidden: this.isRun });
    this.notice = h("div", { class: "dfw-notice", hidden: true, role: "alert" });
    this.help = this.buildHelp();
    this.body = h("div", { class: "dfw-body" }, this.stage.element, this.inspector?.element, this.plate?.element);
    this.controls = this.buildControls();
    this.sizeObserver?.disconnect();
    this.sizeObserver = new ResizeObserver(() => this.resize());
    for (const node of [this.root, this.stage.element]) this.sizeObserver.observe(node);
    this.root.lang = words === WORDS.zh ? "zh-CN" : "en";
    this.root.replaceChildren(h("div", { class: "dfw-top" }, this.title, this.stage.legend, this.controls, this.plate?.controls), this.notice, this.body,
      this.status, ...(this.timeline ? [this.timeline.element] : []), this.live, this.help);
    this.applyTheme();
    this.showScene();
  }

  /** Pictures, or the Gram matrix of the chosen image in their place. */
  get isGram() {
    return Boolean(this.plate) && this.model.get("view") === "gram";
  }

  showScene() {
    if (!this.plate) return;
    const gram = this.isGram;
    this.root.dataset.scene = gram ? "gram" : "pictures";
    for (const part of [this.plate.element, this.plate.controls]) part.hidden = !gram;
    for (const part of [this.stage.element, this.stage.legend, this.controls, this.inspector.element]) part.hidden = gram;
    if (this.summary && !gram) this.arrange();
    this.schedule();
  }

  buildControls() {
    const { words } = this, group = `dfw-mode-${Math.random().toString(36).slice(2)}`;
    const modes = h("div", { class: "dfw-segments", role: "radiogroup", "aria-label": words.mode });
    for (const mode of MODES) {
      const input = h("input", { type: "radio", name: group, value: mode, on: { change: () => this.setMode(mode) } });
      input.checked = mode === this.mode;
      modes.append(h("label", {}, input, h("span", { text: words[mode] })));
    }
    const slider = h("input", { type: "range", min: "0", max: "1", step: "0.05", value: this.opacity,
      on: { input: () => this.look({ opacity: Number(slider.value) }) } });
    this.modes = modes;
    this.smoothSelect = selectBox(words.grid, [["raw", words.raw], ["smooth", words.smooth]], this.smooth ? "smooth" : "raw",
      (value) => this.look({ smooth: value === "smooth" }));
    const range = selectBox(words.range, [["unit", "0 … 1"], ["signed", "−1 … 1"]], this.range, (value) => this.look({ range: value }));
    const help = h("button", { class: "dfw-icon dfw-ask", type: "button", text: "?", title: words.help, "aria-label": words.help,
      on: { click: () => this.help.showModal() } });
    const controls = h("div", { class: "dfw-controls" }, modes,
      h("label", { class: "dfw-field" }, h("span", { text: words.overlay }), slider), this.smoothSelect, range);
    if (this.isRun) {
      this.inspectorButton = h("button", { class: "dfw-toggle", type: "button", text: words.inspector,
        on: { click: () => { this.inspectorWish = !this.inspecting; this.arrange(); } } });
      controls.append(this.inspectorButton);
    }
    controls.append(help);
    return controls;
  }

  buildHelp() {
    const { words } = this, list = h("dl", {});
    for (const [keys, meaning] of words.keys) list.append(h("dt", { text: keys }), h("dd", { text: meaning }));
    const dialog = h("dialog", { class: "dfw-help", "aria-label": words.help }, h("h3", { text: words.help }), list,
      h("button", { type: "button", class: "dfw-toggle", text: words.close, on: { click: () => dialog.close() } }));
    return dialog;
  }

  buildTitle() {
    const { run } = this.summary, { words } = this, name = run?.name ?? this.sourceName;
    if (!name) return this.title.replaceChildren();
    this.title.replaceChildren(h("h2", { text: name, title: name }), h("span", { class: "dfw-phase", text: run?.phase ?? "" }));
    if (!run) return;
    if (run.status) this.title.append(h("span", { class: "dfw-chip", text: words.status[run.status] ?? run.status, data: { status: run.status } }));
  }


  /** Light or dark: the model's word, else the page's (`.dark`, JupyterLab), else the system's. */
  applyTheme() {
    const wish = this.model.get("theme"), { body } = document, html = document.documentElement;
    let dark = matchMedia("(prefers-color-scheme: dark)").matches;
    if (document.querySelector("gradio-app")) dark = false; // Gradio follows the system itself and says so by .dark
    if (body.dataset.jpThemeLight) dark = body.dataset.jpThemeLight === "false";
    if (this.el.closest?.(".dark") || body.classList.contains("dark") || html.classList.contains("dark")) dark = true;
    if (wish === "light" || wish === "dark") dark = wish === "dark";
    this.root.dataset.theme = dark ? "dark" : "light";
    this.colours = themeColours(this.root);
  }

  watch() {
    const { signal } = this.abort, retheme = () => { this.applyTheme(); this.timeline?.redraw(); this.schedule(); };
    this.themeObserver = new MutationObserver(retheme);
    for (const node of [document.documentElement, document.body]) {
      this.themeObserver.observe(node, { attributes: true, attributeFilter: ["class", "data-jp-theme-light"] });
    }
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", retheme, { signal });
    this.handlers = {
      selection: () => this.selectionFromModel(), step: () => this.stepFromModel(), mode: () => this.setMode(this.model.get("mode")),
      language: () => this.rebuild(), theme: retheme, revision: () => this.refresh(), overlay: () => this.timeline?.redraw(),
      view: () => this.showScene(), ...Object.fromEntries(["anchor", "order", "reach"].map((key) => [key, () => this.isGram && this.schedule()])),
    };
    for (const [key, f] of Object.entries(this.handlers)) this.model.on(`change:${key}`, f);
  }

  /** The inspector stands beside the large panels, or right of the stage where there are none. */
  placeInspector(parent) {
    if (!this.inspector) return;
    parent.append(this.inspector.element);
    this.showInspector();
  }

  showInspector() {
    this.root.dataset.inspector = this.inspecting ? "open" : "closed";
    this.inspectorButton.setAttribute("aria-pressed", String(this.inspecting));
  }

  /** Open where it was wished or where there is room: beside large panels it takes none from other pictures. */
  get inspecting() {
    const enough = this.summary?.probes && this.stage.hasHero() ? 900 : 1100;
    return this.isRun && (this.inspectorWish ?? this.root.getBoundingClientRect().width >= enough);
  }

  resize() {
    const { width, height } = this.root.getBoundingClientRect(), stage = this.stage.element;
    const size = [width, height, stage.clientWidth, stage.clientHeight].map(Math.round).join();
    if (!this.summary || this.size === size) return;
    this.size = size;
    this.arrange();
    this.timeline?.redraw();
  }

  /** Give the panels the room there is now. */
  arrange() {
    if (this.inspector) this.showInspector();
    if (this.ready && this.stage.grid.firstChild) this.stage.layout();
    this.schedule();
  }

  rebuild() {
    const { bitmaps, asked } = this.stage;
    this.buildShell();
    Object.assign(this.stage, { bitmaps, asked });
    if (this.summary) this.mount();
  }

  /** Everything that needs the summary; pictures only once they are known. */
  mount() {
    this.showWaiting();
    this.buildTitle();
    if (this.inspector) this.showInspector();
    if (this.ready) {
      this.inspector?.build();
      this.stage.build();
    }
    this.timeline?.build();
    this.timeline?.showPlaying(Boolean(this.playing), this.follow);
    this.schedule();
  }

  // -- data

  async start() {
    try {
      [this.summary] = await this.invoke("summary", {});
      if (this.ready) await this.loadBasis();
    } catch (error) {
      return this.fail(error, () => this.start());
    }
    if (this.abort.signal.aborted) return;
    if (this.ready) this.begin();
    this.mount();
    this.onbegin?.();
  }

  /** The first selection and step, from the model where it has them; then load. */
  begin() {
    const { steps } = this.summary, wish = this.model.get("step"), [rows, columns] = this.grid;
    this.begun = true;
    this.pinned = this.validSelection(this.model.get("selection")) ?? { image: 0, row: rows >> 1, col: columns >> 1 };
    this.step = steps[steps.length - 1];
    if (Number.isInteger(wish) && steps.includes(wish) && wish !== this.step) Object.assign(this, { step: wish, follow: false });
    this.frames.wanted = this.step;
    this.frames.setSteps(steps);
  }

  showWaiting() {
    const { words } = this;
    if (this.ready) return void (this.notice.hidden = true);
    this.notice.replaceChildren(h("b", { text: words.waiting }), h("span", { text: words.waitingMore }));
    this.notice.hidden = false;
  }

  async loadBasis() {
    const [info, buffers] = await this.invoke("basis", {});
    if (!buffers?.length) return;
    const [bytes] = buffers;
    const tensors = decodeTensors(bytes);
    if (!tensors.components) return;
    this.explained = info?.explained ?? null;
    this.fitted = info?.steps ?? [];
    this.refits = info?.refits ?? [];
    const before = this.basis, basis = Object.fromEntries(["mean", "components", "range"].map((name) => [name, toFloat32(tensors[name])]));
    if (before && sameNumbers(before, basis)) return; // the same object: colours that were computed stay
    this.basis = basis;
    if (before) this.stage.announce(this.words.refitted((this.fitted[this.fitted.length - 1] ?? this.step).toLocaleString("en-US")));
  }

  async loadStep(step) {
    const dtype = this.model.get("dtype") === "float16" ? "float16" : "int8";
    const [, [bytes]] = await this.invoke("probes", { step, dtype });
    return makeFrame(decodeTensors(bytes), step);
  }

  stepLoaded(step, error) {
    if (error) return this.fail(error);
    this.timeline?.redraw();
    this.schedule();
    const idle = window.requestIdleCallback ?? ((f) => setTimeout(f, 30));
    idle(() => {
      const frame = this.frames.held.get(step);
      if (frame && this.basis) pcaColours(frame, this.basis); // so that scrubbing only copies colours
    });
  }

  /** Live: pull the summary and the basis again; the patch, the mode and (unless following) the step stay. */
  async refresh() {
    if (this.refreshing || !this.summary) return void (this.again = Boolean(this.refreshing));
    this.refreshing = true;
    try {
      const before = JSON.stringify([this.summary.probes, this.begun]);
      const [summary] = await this.invoke("summary", {});
      const grew = summary.steps.length !== this.summary.steps.length;
      this.summary = summary;
      if (this.ready && (grew || !this.basis)) await this.loadBasis();
      if (this.ready && !this.begun) this.begin();
      if (JSON.stringify([summary.probes, this.begun]) !== before) this.mount();
      else this.refreshParts();
      this.frames.setSteps(summary.steps);
      if (this.follow && summary.steps.length) this.showStep(summary.steps[summary.steps.length - 1]);
    } catch (error) {
      this.fail(error);
    }
    this.refreshing = false;
    if (this.again) { this.again = false; this.refresh(); }
  }

  refreshParts() {
    this.showWaiting();
    this.buildTitle();
    if (this.ready) this.stage.buildLegend();
    this.inspector?.buildEvents();
    this.timeline?.build();
    this.schedule();
  }

  fail(error, retry) {
    const { words } = this;
    this.notice.replaceChildren(h("b", { text: words.failed }), h("span", { text: String(error?.message ?? error) }));
    const again = retry ?? (() => { this.frames.failures.clear(); this.frames.fill(); });
    this.notice.append(h("button", { type: "button", class: "dfw-toggle", text: words.retry,
      on: { click: () => { this.notice.hidden = true; again(); } } }));
    this.notice.hidden = false;
  }

  // -- actions

  validSelection(wish) {
    if (!wish || !this.ready) return null;
    const { image, row, col } = wish, [rows, columns] = this.grid;
    const inside = (value, end) => Number.isInteger(value) && value >= 0 && value < end;
    return inside(image, this.summary.probes.count) && inside(row, rows) && inside(col, columns) ? { image, row, col } : null;
  }

  selectionFromModel() {
    const wish = this.validSelection(this.model.get("selection"));
    if (wish && !samePatch(wish, this.pinned)) {
      this.pinned = wish;
      this.schedule();
    }
  }

  stepFromModel() {
    const wish = this.model.get("step");
    if (this.summary?.steps.includes(wish) && wish !== this.step) this.scrubTo(wish);
  }

  /** How pictures are drawn: {opacity, smooth, range}, those that change. */
  look(change) {
    Object.assign(this, change);
    if (change.range && this.ready) this.stage.build();
    this.schedule();
    this.onlook?.(change);
  }

  hover(patch, timeStamp) {
    if (samePatch(patch, this.hovered)) return;
    this.hovered = patch;
    this.onpoint?.(patch, false);
    this.schedule(timeStamp);
  }

  pin(patch, timeStamp) {
    this.hovered = null;
    if (samePatch(patch, this.pinned)) return void this.schedule();
    this.pinned = patch;
    this.onpoint?.(patch, true);
    this.tell({ selection: patch });
    this.schedule(timeStamp);
  }

  focusImage(image) {
    if (image !== this.pinned.image && !this.hovered) this.pin({ ...this.pinned, image });
  }

  goToMatch(image) {
    if (this.matches?.[image]) {
      const { row, col } = this.matches[image];
      this.pin({ image, row, col });
    }
  }

  movePatch(rows, columns) {
    const { image, row, col } = this.pinned, [height, width] = this.grid;
    this.pin({ image, row: clamp(row + rows, 0, height - 1), col: clamp(col + columns, 0, width - 1) });
  }

  setMode(mode) {
    if (!MODES.includes(mode) || mode === this.mode) return;
    this.mode = mode;
    for (const input of this.modes.querySelectorAll("input")) input.checked = input.value === mode;
    this.tell({ mode });
    if (this.ready) this.stage.build();
    this.schedule();
    this.onlook?.({ mode });
  }

  setFollow(follow) {
    if (follow) this.stop();
    this.follow = follow;
    const { steps } = this.summary ?? { steps: [] };
    if (follow && steps.length) this.showStep(steps[steps.length - 1]);
    this.timeline?.showPlaying(Boolean(this.playing), this.follow);
  }

  /** A step chosen by the user: the nearest with features; following ends, unless it is the latest. */
  scrubTo(step, timeStamp) {
    const { steps } = this.summary ?? { steps: [] };
    if (!steps.length) return;
    this.stop();
    const near = steps.reduce((best, s) => (Math.abs(s - step) < Math.abs(best - step) ? s : best), steps[0]);
    this.follow = this.follow && near === steps[steps.length - 1];
    this.timeline?.showPlaying(false, this.follow);
    this.showStep(near, timeStamp === undefined, timeStamp);
  }

  stepBy(count) {
    const { steps } = this.summary ?? { steps: [] }, at = steps.indexOf(this.step);
    if (steps.length) this.scrubTo(steps[clamp(at + count, 0, steps.length - 1)]);
  }

  showStep(step, fade = true, timeStamp = undefined) {
    if (step === this.step) return void this.schedule(timeStamp);
    this.step = step;
    this.fadeFrom = fade && !matchMedia("(prefers-reduced-motion: reduce)").matches ? performance.now() : 0;
    this.startFade = this.fadeFrom > 0;
    this.frames.want(step);
    this.tell({ step });
    this.schedule(timeStamp);
  }

  togglePlay() {
    if (this.playing) return this.stop();
    const { steps } = this.summary ?? { steps: [] };
    if (steps.length < 2) return;
    if (this.step === steps[steps.length - 1]) this.showStep(steps[0]);
    this.follow = false;
    this.playing = setInterval(() => this.tick(), PLAY_INTERVAL);
    this.timeline?.showPlaying(true, false);
  }

  /** One step of playing; waits for a step that is not in memory yet, but not for one that cannot be loaded. */
  tick() {
    const { steps } = this.summary, next = steps[steps.indexOf(this.step) + 1];
    if (next === undefined) return this.stop();
    if (this.frames.want(next) || (this.frames.failures.get(next) ?? 0) >= 3) this.showStep(next);
  }

  stop() {
    clearInterval(this.playing);
    this.playing = null;
    this.schedule(); // the words for the step it stopped at
    this.timeline?.showPlaying(false, this.follow);
  }

  /** Write to the model, at most every 150 ms. */
  tell(values) {
    this.untold = { ...this.untold, ...values };
    this.telling ??= setTimeout(() => {
      for (const [key, value] of Object.entries(this.untold)) this.model.set(key, value);
      this.untold = {};
      this.telling = null;
      this.model.save_changes();
    }, 150);
  }

  key(event) {
    if (!this.ready || event.ctrlKey || event.metaKey || event.altKey || this.help.open) return;
    const { target, key } = event, big = event.shiftKey ? 4 : 1;
    if (/^(SELECT|TEXTAREA)$/.test(target.tagName)) return;
    const control = /^(INPUT|BUTTON)$/.test(target.tagName), slider = target === this.timeline?.track;
    const arrows = { ArrowUp: [-big, 0], ArrowDown: [big, 0], ArrowLeft: [0, -big], ArrowRight: [0, big] };
    if (arrows[key] && (control || target.tagName === "SUMMARY")) return;
    if (control && (key === " " || key === "Enter")) return;
    if (arrows[key] && slider) this.stepBy(key === "ArrowRight" || key === "ArrowUp" ? big : -big);
    else if (arrows[key]) this.movePatch(...arrows[key]);
    else if (!this.shortcut(key)) return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Single-key commands; false for a key that means nothing here. */
  shortcut(key) {
    const { steps, probes } = this.summary, last = steps.length - 1, run = this.isRun && steps.length;
    const commands = { m: () => this.setMode(MODES[(MODES.indexOf(this.mode) + 1) % MODES.length]), "?": () => this.help.showModal(),
      i: () => { this.look({ smooth: !this.smooth }); this.smoothSelect.querySelector("select").value = this.smooth ? "smooth" : "raw"; } };
    if (run) Object.assign(commands, { "[": () => this.stepBy(-1), "]": () => this.stepBy(1), " ": () => this.togglePlay(),
      f: () => this.setFollow(!this.follow), Home: () => this.scrubTo(steps[0]), End: () => this.scrubTo(steps[last]) });
    if (/^[1-9]$/.test(key) && Number(key) <= probes.count) {
      this.stage.focus(Number(key) - 1);
      this.pin({ ...this.pinned, image: Number(key) - 1 });
    } else if (commands[key]) commands[key]();
    else return false;
    return true;
  }

  // -- drawing

  schedule(timeStamp) {
    if (timeStamp !== undefined) this.eventTime = timeStamp;
    this.raf ??= requestAnimationFrame(() => {
      this.raf = null;
      this.frame();
    });
  }

  frame() {
    if (!this.ready || this.abort.signal.aborted) return;
    const frame = this.frames.want(this.step) ?? this.frames.nearest(this.step);
    this.timeline?.update(frame?.step ?? this.step);
    this.onframe?.(); // for a page that shows the same step and patch in its own way
    if (this.covered) return; // the timeline alone is in sight
    if (this.isGram) return this.plate.draw(frame);
    if (!frame) return this.stage.drawLayers(this.pinned, []);
    const query = this.hovered ?? this.pinned, index = (query.image * frame.height + query.row) * frame.columns + query.col;
    const before = performance.now();
    this.kernel.bind(frame);
    const start = performance.now(), cosines = this.kernel.cosines(index);
    this.timings.kernel = performance.now() - start;
    this.timings.bind = start - before;
    this.matches = bestMatches(cosines, frame, query);
    this.stage.draw(frame, query, cosines, this.matches, this.fadeProgress());
    this.inspector?.draw(frame, query, index, this.matches);
    this.describe(frame, query, index);
    this.measurePaint();
  }

  /** 0 in the first frame of a cross-fade, 1 when there is none or it is over; asks for the next frame. */
  fadeProgress() {
    if (!this.fadeFrom) return 1;
    if (this.startFade) {
      this.startFade = false;
      this.schedule();
      return 0;
    }
    const progress = (performance.now() - this.fadeFrom) / FADE;
    if (progress >= 1) this.fadeFrom = 0;
    else this.schedule();
    return Math.min(progress, 1);
  }

  /** Event to the first task after the frame that drew it: a proxy for event to paint. */
  measurePaint() {
    if (this.eventTime === undefined) return;
    const began = this.eventTime, channel = new MessageChannel();
    this.eventTime = undefined;
    channel.port1.onmessage = () => {
      this.timings.paint = performance.now() - began;
      this.onpaint?.(this.timings);
      channel.port1.close();
    };
    channel.port2.postMessage(0);
  }

  /** What is slower than a frame, or not wanted while hovering: the curve over time and the words. */
  describe(frame, query, index) {
    clearTimeout(this.describing);
    this.describing = setTimeout(() => {
      if (this.abort.signal.aborted) return;
      const match = this.matches.reduce((best, m) => (m && (!best || m.value > best.value) ? m : best), null);
      this.inspector?.drawCurve(query, index, match);
      const sentence = this.sentence(frame, query, index, match);
      if (!this.isRun) say(this.status, sentence);
      if (this.hovered) return;
      if (!this.playing) say(this.live, sentence); // while playing it would be read aloud five times a second
      this.stage.describe(frame, sentence);
    }, 60);
  }

  sentence(frame, query, index, match) {
    const { words } = this, place = (p) => words.place(p.image + 1, p.row + 1, p.col + 1);
    const cls = clsCosine(frame, index), parts = [`${words.selected}: ${place(query)}`, `${words.norm} ${frame.norms[index].toPrecision(3)}`];
    if (cls !== null) parts.push(`${words.cls} ${signed(cls, 2)}`);
    if (match) parts.push(`${words.best}: ${place(match)}, ${signed(match.value, 2)}`);
    return `${parts.join(" · ")}.`;
  }

  close() {
    this.abort.abort();
    this.frames.close();
    this.stop();
    clearTimeout(this.telling);
    clearTimeout(this.describing);
    this.themeObserver.disconnect();
    this.sizeObserver.disconnect();
    for (const [key, f] of Object.entries(this.handlers)) this.model.off?.(`change:${key}`, f);
    this.root.remove();
  }
}

const sameNumbers = (a, b) => Object.keys(a).every((key) => a[key].length === b[key].length && a[key].every((x, i) => x === b[key][i]));
const samePatch = (a, b) => a === b || (a && b && a.image === b.image && a.row === b.row && a.col === b.col);

// ---------------------------------------------------------------------------------------------------- 12 comparison

/**
 * The same images in the eyes of several sources (backbones, layers or steps), one row each: a patch chosen in one is
 * asked of all others at the same place of the picture, whatever their grids. model "sources": their names; questions
 * to the host carry {source: k}; "selection" tells {source, image, row, col}.
 */
class Comparison {
  constructor(model, el, invoke) {
    Object.assign(this, { model, el, invoke });
    this.root = h("div", { class: "dfw dfw-comparison", tabindex: "-1", "data-lm-suppress-shortcuts": "true", data: { view: "compare" } });
    this.root.addEventListener("keydown", (event) => this.views[0] && !event.target.closest(".dfw-compared") && this.views[0].key(event));
    this.root.view = this;
    el.append(this.root);
    this.handlers = { language: () => this.build(), selection: () => this.selectionFromModel(), revision: () => this.views.forEach((view) => view.refresh()),
      theme: () => this.retheme(), mode: () => this.views[0]?.setMode(model.get("mode")) };
    for (const [key, f] of Object.entries(this.handlers)) model.on(`change:${key}`, f);
    this.build();
  }

  build() {
    this.closeViews();
    const words = wordsOf(this.model.get("language")), names = this.model.get("sources") ?? [];
    this.bar = h("div", { class: "dfw-top" }, h("p", { class: "dfw-lead", text: words.lead }));
    const places = names.map(() => h("div", { class: "dfw-compared" }));
    this.root.lang = words === WORDS.zh ? "zh-CN" : "en";
    this.rows = h("div", { class: "dfw-rows", data: { columns: names.length > 3 ? 2 : 1 } }, ...places);
    this.root.replaceChildren(this.bar, this.rows);
    this.views = places.map((place, k) => this.row(place, k, names[k]));
    if (this.views[0]) this.bar.append(this.views[0].controls); // one set of controls for all rows
    for (const view of this.views.slice(1)) view.controls.remove();
    this.retheme();
  }

  row(place, source, name) {
    const { length } = this.model.get("sources"), own = { view: "patches", height: clamp(640 / (length > 3 ? Math.ceil(length / 2) : length), 150, 300) };
    const model = {
      get: (key) => (key in own ? own[key] : key === "selection" ? this.selectionOf(source) : this.model.get(key)),
      set: (key, value) => { own[key] = value; }, save_changes: () => {}, on: () => {}, off: () => {},
    };
    const view = new View(model, place, (question, message) => this.invoke(question, { ...message, source }));
    view.sourceName = name;
    view.onpoint = (patch, pinned) => this.point(source, patch, pinned);
    view.onlook = (change) => this.look(source, change);
    view.onbegin = () => this.place();
    return view;
  }

  /** What the model selects, in the row it speaks of; `place` brings the others there. */
  selectionOf(source) {
    const wish = this.model.get("selection");
    return wish && (wish.source ?? 0) === source ? { image: wish.image, row: wish.row, col: wish.col } : null;
  }

  /** All rows at the place that the model selects, once they know their grids. */
  place() {
    const lead = this.views[this.model.get("selection")?.source ?? 0];
    if (lead?.begun) this.point(this.views.indexOf(lead), lead.pinned, true, false);
  }

  /** The same place in all other rows. */
  point(source, patch, pinned, tell = true) {
    const { grid } = this.views[source];
    this.views.forEach((view, k) => {
      if (k === source || !view.begun) return;
      const there = patch && samePlace(patch, grid, view.grid);
      if (pinned) Object.assign(view, { pinned: there, hovered: null });
      else view.hovered = there;
      view.schedule();
    });
    if (pinned && tell) this.tell({ source, ...patch });
  }

  tell(selection) {
    this.told = selection;
    this.telling ??= setTimeout(() => {
      this.telling = null;
      this.model.set("selection", this.told);
      this.model.save_changes();
    }, 150);
  }

  selectionFromModel() {
    const wish = this.model.get("selection"), view = this.views[wish?.source ?? 0], patch = view?.validSelection(wish);
    if (patch && !samePatch(patch, view.pinned)) view.pin(patch);
  }

  look(source, { mode, ...rest }) {
    if (this.looking) return;
    this.looking = true; // what the others are told, they need not tell again
    for (const view of this.views) {
      if (view === this.views[source]) continue;
      if (mode) view.setMode(mode);
      else view.look(rest);
    }
    this.looking = false;
    if (!mode) return;
    this.model.set("mode", mode);
    this.model.save_changes();
  }

  retheme() {
    for (const view of this.views) view.applyTheme();
    if (this.views[0]) this.root.dataset.theme = this.views[0].root.dataset.theme;
    for (const view of this.views) view.schedule();
  }

  closeViews() {
    for (const view of this.views ?? []) view.close();
    this.views = [];
  }

  close() {
    clearTimeout(this.telling);
    this.closeViews();
    for (const [key, f] of Object.entries(this.handlers)) this.model.off?.(`change:${key}`, f);
    this.root.remove();
  }
}

/** The patch of grid `to` under the centre of a patch of grid `from`. */
export function samePlace({ image, row, col }, from, to) {
  const at = (index, a, b) => clamp(Math.floor(((index + 0.5) / a) * b), 0, b - 1);
  return { image, row: at(row, from[0], to[0]), col: at(col, from[1], to[1]) };
}

// ---------------------------------------------------------------------------------------------------- 13 render

/** Mount a view; returns what takes it down again. The view hangs on its root element for tests and measurements. */
function render({ model, el, experimental }) {
  const invoke = (name, message) => experimental.invoke(name, message, { signal: AbortSignal.timeout(ANSWER_LIMIT) });
  const view = new (model.get("view") === "compare" ? Comparison : View)(model, el, invoke);
  return () => view.close();
}

/** What a page that draws its own pictures takes from here; the words in the page's language. */
const parts = {
  Frames, Kernel, makeFrame, decodeTensors, toFloat32, pcaColours, bestMatches, colourCosines, colourDifferences, SEQUENTIAL, DIVERGING,
  eventWords: (event, language) => eventWords(wordsOf(language), event),
  stepWords: (step, language) => stepWords(wordsOf(language), step),
};

export default { render, seriesName, isScore, parts };
