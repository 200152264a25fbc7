//! Speed of a GPU's kernels: products, attention and the small ones between them, at the shapes of real layers.
//!
//! `cargo bench -p cosec-worker --bench cuda`. Times are averages over many launches with several matrices, so that
//! none is still in a cache.
#![expect(clippy::unwrap_used, reason = "a benchmark that fails ends")]

use std::time::Instant;

use candle_core::{Device, Tensor};
use cosec_worker::kernels::cpu::CpuKernels;
use cosec_worker::kernels::cuda::{CudaKernels, GpuBuffer, GpuMatrix};
use cosec_worker::kernels::{
    Activation, AttentionHeads, CacheFormat, CacheShape, Kernels, NormKind, NormWeights, RotaryLayout, RotaryPairs,
    TokenPlace, WeightFormat,
};
use half::bf16;

/// Bytes of weights in rotation.
const WORKING_SET: usize = 400 << 20;

/// Seconds of one of `count` calls, without the first ones.
fn seconds(cuda: &CudaKernels, count: usize, mut call: impl FnMut(usize)) -> f64 {
    let (buffer, mut nothing) = (cuda.buffer(1).unwrap(), [0.0]);
    (0..count.min(8)).for_each(&mut call);
    cuda.read(&buffer, &mut nothing).unwrap();
    let began = Instant::now();
    (0..count).for_each(&mut call);
    cuda.read(&buffer, &mut nothing).unwrap();
    began.elapsed().as_secs_f64() / count as f64
}

fn random(cuda: &CudaKernels, elements: usize) -> GpuBuffer {
    let values: Vec<f32> = (0..elements).map(|i| ((i * 7919 + i / 613) % 1000) as f32 / 500.0 - 1.0).collect();
    let mut buffer = cuda.buffer(elements).unwrap();
    cuda.write(&values, &mut buffer).unwrap();
    buffer
}

fn products(cuda: &CudaKernels, format: WeightFormat, bytes: f64, [outputs, inputs]: [usize; 2]) {
    let size = (outputs * inputs) as f64 * bytes;
    let count = (WORKING_SET as f64 / size).ceil().max(2.0) as usize;
    let number = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 7) as u8;
    let (weights, block_bytes) = format.block();
    let matrices: Vec<GpuMatrix> = if weights == 1 {
        let small = |i| bf16::from_f32((f32::from(number(i)) - 127.5) / 6400.0);
        let weights: Vec<bf16> = (0..outputs * inputs).map(small).collect();
        let weights = Tensor::from_vec(weights, (outputs, inputs), &Device::Cpu).unwrap();
        (0..count).map(|_| cuda.matrix(&weights, format).unwrap()).collect()
    } else {
        // Random quants with finite scales.
        let mut blocks: Vec<u8> = (0..outputs * inputs / weights * block_bytes).map(number).collect();
        blocks.chunks_mut(block_bytes).for_each(|block| block[..4].copy_from_slice(&[0, 16, 0, 16]));
        (0..count).map(|_| cuda.matrix_from_blocks(format, [outputs, inputs], &blocks).unwrap()).collect()
    };
    let mut out = cuda.buffer(4096 * outputs).unwrap();
    let x = random(cuda, 4096 * inputs);
    let normed = {
        let mut normed = cuda.buffer(4096 * inputs).unwrap();
        let weight = random(cuda, inputs);
        let kind = NormKind::RootMeanSquare;
        cuda.norm(
            &x,
            4096,
            NormWeights { kind, epsilon: 1e-6, width: inputs, weight: &weight, bias: None },
            &mut normed,
        );
        normed
    };
    for rows in [1, 8, 16, 32, 64, 128, 256, 512, 4096] {
        let launches = if rows > 64 { 30 } else { 200 };
        let one = seconds(cuda, launches, |i| cuda.linear(&normed, rows, &matrices[i % count], None, &mut out));
        println!(
            "{format:?} [{outputs}, {inputs}] {rows} rows: {:.1} us, {:.0} GB/s of weights, {:.1} TFLOP/s",
            1e6 * one,
            size / one / 1e9,
            2.0 * (rows * outputs * inputs) as f64 / one / 1e12
        );
    }
}

fn attention(cuda: &CudaKernels, heads: AttentionHeads, (sequences, rows, context): (usize, usize, usize)) {
    let (block_tokens, layers) = (16, 4);
    let each = (context + rows).div_ceil(block_tokens);
    let format = CacheFormat::Bf16;
    let shape = CacheShape { layers, blocks: each * sequences, block_tokens, kv_width: heads.kv_width(), format };
    let mut cache = cuda.cache(shape).unwrap();
    let tables: Vec<Vec<u32>> =
        (0..sequences).map(|s| (0..each).map(|b| (b * sequences + s) as u32).collect()).collect();
    let places: Vec<TokenPlace<'_>> = tables
        .iter()
        .flat_map(|blocks| (0..rows).map(|row| TokenPlace { position: context + row, blocks }))
        .collect();
    let qkv = random(cuda, places.len() * heads.qkv_width());
    let mut out = cuda.buffer(places.len() * heads.query_width()).unwrap();
    let append = seconds(cuda, 50, |i| cuda.append(&qkv, heads, &places, &mut cache, i % layers));
    let attend = seconds(cuda, 50, |i| cuda.attend(&qkv, heads, None, &places, (&cache, i % layers), &mut out));
    let read = (sequences * (context + rows) * 2 * heads.kv_width() * 2) as f64;
    let operations = (4 * sequences * rows * (context + rows / 2) * heads.query_width()) as f64;
    println!(
        "attention of {sequences} x {rows} rows after {context}, {heads:?}: {:.1} us, {:.0} GB/s of keys and values, {:.1} TFLOP/s; \
         append {:.1} us",
        1e6 * attend,
        read / attend / 1e9,
        operations / attend / 1e12,
        1e6 * append
    );
}

fn small(cuda: &CudaKernels, rows: usize) {
    let heads = AttentionHeads { query: 32, kv: 32, width: 128 };
    let (hidden, inner) = (4096, 11008);
    let (x, y, weight) = (random(cuda, rows * hidden), random(cuda, rows * hidden), random(cuda, hidden));
    let (mut stream, mut normed) = (random(cuda, rows * hidden), cuda.buffer(rows * hidden).unwrap());
    let kind = NormKind::RootMeanSquare;
    let norm = || NormWeights { kind, epsilon: 1e-6, width: hidden, weight: &weight, bias: None };
    let (mut qkv, angles) = (random(cuda, rows * heads.qkv_width()), random(cuda, rows * 128));
    let (projected, mut gated) = (random(cuda, rows * 2 * inner), cuda.buffer(rows * inner).unwrap());
    let layout = RotaryLayout { width: 128, pairs: RotaryPairs::Halves };
    let norm = seconds(cuda, 200, |_| cuda.norm(&x, rows, norm(), &mut normed));
    let add = seconds(cuda, 200, |_| cuda.add(&mut stream, &y, rows * hidden));
    let rotate = seconds(cuda, 200, |_| cuda.rotate(&mut qkv, rows, heads, layout, &angles));
    let activate = seconds(cuda, 200, |_| cuda.activate_gated(Activation::Silu, &projected, rows, inner, &mut gated));
    println!(
        "{rows} rows, in us: norm {:.1}, add {:.1}, rotate {:.1}, gated activation {:.1}",
        1e6 * norm,
        1e6 * add,
        1e6 * rotate,
        1e6 * activate
    );
}

fn main() {
    let began = Instant::now();
    let cuda = CudaKernels::open(0, CpuKernels::default()).unwrap();
    println!("{}, opened in {:.1} s", cuda.name(), began.elapsed().as_secs_f64());
    for rows in [1, 32, 512] {
        small(&cuda, rows);
    }
    let of_7b = AttentionHeads { query: 32, kv: 32, width: 128 };
    for shape in [
        (1, 1, 512),
        (1, 1, 4000),
        (32, 1, 512),
        (32, 1, 4000),
        (128, 1, 512),
        (8, 5, 1000),
        (1, 512, 0),
        (1, 4000, 0),
    ] {
        attention(&cuda, of_7b, shape);
    }
    attention(&cuda, AttentionHeads { query: 12, kv: 2, width: 128 }, (32, 1, 1000));
    attention(&cuda, AttentionHeads { query: 48, kv: 1, width: 128 }, (32, 1, 1000));
    attention(&cuda, AttentionHeads { query: 14, kv: 2, width: 64 }, (1, 512, 0));
    for shape in [[12288, 4096], [4096, 4096], [22016, 4096], [4096, 11008], [32256, 4096]] {
        products(&cuda, WeightFormat::Bf16, 2.0, shape);
    }
    for shape in [[6144, 2048], [2048, 2048], [2048, 5504], [3072, 1024], [1024, 4096]] {
        products(&cuda, WeightFormat::Bf16, 2.0, shape);
    }
    products(&cuda, WeightFormat::Q8_0, 34.0 / 32.0, [22016, 4096]);
    products(&cuda, WeightFormat::Q4K, 5.0 / 8.0, [22016, 4096]);
}
