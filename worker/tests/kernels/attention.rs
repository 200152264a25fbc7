//! Attention over a paged cache.

use cosec_worker::kernels::cpu::CpuKernels;
use cosec_worker::kernels::reference::ReferenceKernels;
use cosec_worker::kernels::{AttentionHeads, CacheFormat, CacheShape, Kernels, TokenPlace};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

use crate::{
    Compute, check_cpu, compare, download, heads, is_stand_in, on_gpu, random, upload, with_gpu, with_seeds,
};

/// One sequence, appended in chunks of rows into a cache of given blocks.
struct Attended {
    qkv: Vec<f32>,
    heads: AttentionHeads,
    window: Option<usize>,
    format: CacheFormat,
    block_tokens: usize,
    blocks: Vec<u32>,
    chunk: usize,
}

impl Compute for Attended {
    fn with<K: Kernels>(&self, kernels: &K) -> Vec<f32> {
        let (blocks, kv_width) = (self.blocks.len(), self.heads.kv_width());
        let shape = CacheShape { layers: 2, blocks, block_tokens: self.block_tokens, kv_width, format: self.format };
        let mut cache = kernels.cache(shape).unwrap();
        let mut found = Vec::new();
        let width = self.heads.qkv_width();
        for (index, rows) in self.qkv.chunks(self.chunk * width).enumerate() {
            let first = index * self.chunk;
            let place = |position| TokenPlace { position, blocks: self.blocks.as_slice() };
            let places: Vec<TokenPlace<'_>> = (first..first + rows.len() / width).map(place).collect();
            let qkv = upload(kernels, rows);
            let len = places.len() * self.heads.query_width();
            let mut out = kernels.buffer(len).unwrap();
            kernels.append(&qkv, self.heads, &places, &mut cache, 1);
            kernels.attend(&qkv, self.heads, self.window, &places, (&cache, 1), &mut out);
            found.extend(download(kernels, &out, len));
        }
        found
    }
}

#[test]
fn attention_agrees_and_does_not_depend_on_chunks_or_blocks() {
    with_seeds(|rng| {
        let (heads, rows) = (heads(rng), rng.random_range(1..90));
        // Large scores, so that the running maximum changes.
        let qkv: Vec<f32> = random(rng, rows * heads.qkv_width()).into_iter().map(|x| 3.0 * x).collect();
        let window = rng.random::<bool>().then(|| rng.random_range(1..rows + 2));
        let format = *[CacheFormat::F32, CacheFormat::F16, CacheFormat::Bf16].choose(rng).unwrap();
        let attended = |rng: &mut StdRng| {
            let block_tokens = rng.random_range(1..20);
            let mut blocks: Vec<u32> = (0..rows.div_ceil(block_tokens) as u32 + 3).collect();
            blocks.shuffle(rng);
            let chunk = rng.random_range(1..=rows);
            Attended { qkv: qkv.clone(), heads, window, format, block_tokens, blocks, chunk }
        };
        let (one, other) = (attended(rng), attended(rng));
        assert_eq!(one.with(&CpuKernels::default()), other.with(&CpuKernels::default()));
        on_gpu(|cuda| assert!(one.with(cuda) == other.with(cuda)));
        check_cpu(2e-5, &one);
        // Tensor cores round to the cache's type.
        let tolerance = if format == CacheFormat::F32 { 2e-5 } else { 0.1 };
        on_gpu(|cuda| compare("cuda", tolerance, &one.with(cuda), &one.with(&ReferenceKernels)));
    });
}

/// With tensor cores: heads of their widths, chunks on both sides of the limit for stored tiles. The queries are exact
/// in bfloat16, so that only the weights of the mean are rounded.
#[test]
#[ignore = "needs a GPU, or the stand-in that tests/run gives it"]
fn attention_on_a_gpu_agrees_and_does_not_depend_on_chunks_or_blocks() {
    with_gpu(|cuda| {
        with_seeds(|rng| {
            let kv = rng.random_range(1..4);
            let heads =
                AttentionHeads { query: kv * rng.random_range(1..10), kv, width: 8 * rng.random_range(1..17) };
            let rows = rng.random_range(1..if is_stand_in(cuda) { 150 } else { 300 });
            let qkv = random(rng, rows * heads.qkv_width());
            let qkv: Vec<f32> = qkv.into_iter().map(|x| half::bf16::from_f32(2.0 * x).to_f32()).collect();
            let window = rng.random::<bool>().then(|| rng.random_range(1..rows + 2));
            let format = *[CacheFormat::F16, CacheFormat::Bf16].choose(rng).unwrap();
            let attended = |rng: &mut StdRng, chunk| {
                let block_tokens = rng.random_range(1..20);
                let mut blocks: Vec<u32> = (0..rows.div_ceil(block_tokens) as u32 + 3).collect();
                blocks.shuffle(rng);
                Attended { qkv: qkv.clone(), heads, window, format, block_tokens, blocks, chunk }
            };
            let whole = attended(rng, rows);
            let found = whole.with(cuda);
            compare("cuda", 2e-2, &found, &whole.with(&ReferenceKernels));
            for chunk in [1, rng.random_range(1..=16), rng.random_range(1..=rows)] {
                assert!(attended(rng, chunk).with(cuda) == found, "{heads:?}, {rows} rows in chunks of {chunk}");
            }
        });
    });
}
