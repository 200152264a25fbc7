//! The kernels on CPU cores: f32 activations, weights in f32, bf16 or f16.
//!
//! Work is spread over the threads of the rayon pool that the caller stands in.

use candle_core::{DType, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use self::attention::Attend;
use self::elementwise::{Activate, ActivateGated, Normalise, Rotate};
use self::lanes::{Element, InstructionSet};
use super::{Activation, CacheShape, Heads, KernelError, Kernels, NormWeights, Place, RotaryLayout};

mod attention;
mod elementwise;
mod lanes;
mod linear;

/// Elements below which one thread works alone.
const PARALLEL_FROM: usize = 1 << 15;

/// Kernels for the instruction set of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    instructions: InstructionSet,
}

impl Default for Cpu {
    fn default() -> Self {
        Self { instructions: InstructionSet::detect() }
    }
}

impl Cpu {
    /// Kernels that use no instructions beyond the target's baseline.
    #[must_use]
    pub fn baseline() -> Self {
        Self { instructions: InstructionSet::Baseline }
    }
}

/// Weights `[outputs, inputs]`.
#[derive(Clone, Debug)]
pub struct Matrix {
    values: Values,
    inputs: usize,
}

#[derive(Clone, Debug)]
enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

/// Keys and values in f32.
#[derive(Clone, Debug)]
pub struct Cache {
    shape: CacheShape,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Kernels for Cpu {
    type Buffer = Vec<f32>;
    type Matrix = Matrix;
    type Cache = Cache;

    fn buffer(&self, elements: usize) -> Result<Vec<f32>, KernelError> {
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(elements).map_err(|_| KernelError::OutOfMemory { elements })?;
        buffer.resize(elements, 0.0);
        Ok(buffer)
    }

    fn matrix(&self, weights: &Tensor) -> Result<Matrix, KernelError> {
        let device = |error: candle_core::Error| KernelError::Device(error.to_string());
        let (_, inputs) = weights.dims2().map_err(device)?;
        let flat = weights.flatten_all().map_err(device)?;
        let values = match flat.dtype() {
            DType::F32 => flat.to_vec1().map(Values::F32),
            DType::BF16 => flat.to_vec1().map(Values::Bf16),
            DType::F16 => flat.to_vec1().map(Values::F16),
            other => return Err(KernelError::Device(format!("no kernels for weights of type {other:?}"))),
        };
        Ok(Matrix { values: values.map_err(device)?, inputs })
    }

    fn cache(&self, shape: CacheShape) -> Result<Cache, KernelError> {
        let elements = shape.elements().ok_or(KernelError::OutOfMemory { elements: usize::MAX })?;
        Ok(Cache { shape, keys: self.buffer(elements)?, values: self.buffer(elements)? })
    }

    fn write(&self, values: &[f32], buffer: &mut Vec<f32>) -> Result<(), KernelError> {
        buffer[..values.len()].copy_from_slice(values);
        Ok(())
    }

    fn read(&self, buffer: &Vec<f32>, values: &mut [f32]) -> Result<(), KernelError> {
        values.copy_from_slice(&buffer[..values.len()]);
        Ok(())
    }

    fn embed(&self, table: &Matrix, ids: &[u32], out: &mut Vec<f32>) {
        match &table.values {
            Values::F32(values) => embed(values, table.inputs, ids, out),
            Values::Bf16(values) => embed(values, table.inputs, ids, out),
            Values::F16(values) => embed(values, table.inputs, ids, out),
        }
    }

    fn select(&self, x: &Vec<f32>, width: usize, rows: &[usize], out: &mut Vec<f32>) {
        for (&row, out) in rows.iter().zip(out.chunks_exact_mut(width)) {
            out.copy_from_slice(&x[row * width..][..width]);
        }
    }

    fn norm(&self, x: &Vec<f32>, rows: usize, norm: NormWeights<'_, Vec<f32>>, out: &mut Vec<f32>) {
        let NormWeights { kind, epsilon, width, weight, bias } = norm;
        each_row(&mut out[..rows * width], width, |row, out| {
            let x = &x[row * width..][..width];
            let bias = bias.map(Vec::as_slice);
            self.instructions.run(Normalise { kind, epsilon: epsilon as f32, x, weight, bias, out });
        });
    }

    fn linear(&self, x: &Vec<f32>, rows: usize, weight: &Matrix, bias: Option<&Vec<f32>>, out: &mut Vec<f32>) {
        let (x, bias) = ((x.as_slice(), rows), bias.map(Vec::as_slice));
        match &weight.values {
            Values::F32(values) => linear::linear(self.instructions, x, (values, weight.inputs), bias, out),
            Values::Bf16(values) => linear::linear(self.instructions, x, (values, weight.inputs), bias, out),
            Values::F16(values) => linear::linear(self.instructions, x, (values, weight.inputs), bias, out),
        }
    }

    fn rotate(&self, qkv: &mut Vec<f32>, rows: usize, heads: Heads, rotary: RotaryLayout, angles: &Vec<f32>) {
        let width = heads.qkv_width();
        each_row(&mut qkv[..rows * width], width, |row, qkv| {
            let angles = &angles[row * rotary.width..][..rotary.width];
            let heads_rotated = &mut qkv[..heads.query_width() + heads.kv_width()];
            self.instructions.run(Rotate { rotary, head_width: heads.width, angles, heads: heads_rotated });
        });
    }

    fn append(&self, qkv: &Vec<f32>, heads: Heads, places: &[Place<'_>], cache: &mut Cache, layer: usize) {
        for (row, &place) in qkv.chunks_exact(heads.qkv_width()).zip(places) {
            let at = cache.shape.offset(layer, place);
            let (keys, values) = row[heads.query_width()..].split_at(heads.kv_width());
            cache.keys[at..][..heads.kv_width()].copy_from_slice(keys);
            cache.values[at..][..heads.kv_width()].copy_from_slice(values);
        }
    }

    fn attend(
        &self,
        qkv: &Vec<f32>,
        heads: Heads,
        window: Option<usize>,
        places: &[Place<'_>],
        (cache, layer): (&Cache, usize),
        out: &mut Vec<f32>,
    ) {
        let Cache { shape, keys, values } = cache;
        let one_head = |index: usize, out: &mut [f32]| {
            let (row, head) = (index / heads.query, index % heads.query);
            let query = &qkv[row * heads.qkv_width() + head * heads.width..][..heads.width];
            let head_offset = head / (heads.query / heads.kv) * heads.width;
            let place = places[row];
            self.instructions.run(Attend { query, keys, values, shape, layer, place, head_offset, window, out });
        };
        let out = &mut out[..places.len() * heads.query_width()];
        let keys_read: usize = places.iter().map(|place| place.position + 1).sum();
        if keys_read * heads.query_width() < PARALLEL_FROM {
            out.chunks_exact_mut(heads.width).enumerate().for_each(|(index, out)| one_head(index, out));
        } else {
            out.par_chunks_exact_mut(heads.width).enumerate().for_each(|(index, out)| one_head(index, out));
        }
    }

    fn activate(&self, activation: Activation, x: &mut Vec<f32>, elements: usize) {
        each_row(&mut x[..elements], PARALLEL_FROM / 4, |_, x| self.instructions.run(Activate { activation, x }));
    }

    fn activate_gated(&self, activation: Activation, x: &Vec<f32>, rows: usize, inner: usize, out: &mut Vec<f32>) {
        each_row(&mut out[..rows * inner], inner, |row, out| {
            let (gate, up) = x[row * 2 * inner..][..2 * inner].split_at(inner);
            self.instructions.run(ActivateGated { activation, gate, up, out });
        });
    }

    fn add(&self, x: &mut Vec<f32>, y: &Vec<f32>, elements: usize) {
        for (x, y) in x[..elements].iter_mut().zip(y) {
            *x += y;
        }
    }
}

fn embed<W: Element>(table: &[W], width: usize, ids: &[u32], out: &mut [f32]) {
    for (&id, out) in ids.iter().zip(out.chunks_exact_mut(width)) {
        let row = &table[id as usize * width..][..width];
        out.iter_mut().zip(row).for_each(|(out, &value)| *out = value.widen());
    }
}

/// Calls `work` with every piece of `width` elements (the last may be shorter), on all threads where that pays.
fn each_row(x: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if x.len() < PARALLEL_FROM {
        x.chunks_mut(width).enumerate().for_each(|(row, x)| work(row, x));
    } else {
        x.par_chunks_mut(width).enumerate().for_each(|(row, x)| work(row, x));
    }
}
