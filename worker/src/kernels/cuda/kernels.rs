//! The operations of a decoder as launches on a GPU.

use std::ops::Range;
use std::time::Duration;

use candle_core::Tensor;

use super::gpu::LaunchSize;
use super::matrix::{ActivationRounding, GpuMatrix};
use super::program::GpuProgram;
use super::{CudaKernels, GpuBuffer, GpuCache};
use crate::kernels::{
    Activation, AttentionHeads, CacheFormat, CacheShape, KernelError, Kernels, NormKind, NormWeights, RotaryLayout,
    RotaryPairs, TokenPlace, WeightFormat,
};
use crate::logits_view::{KeptLogits, LogitsTask};

/// Threads of a block; as in `elementwise.cu`.
const NORM_THREADS: u32 = 512;

impl Kernels for CudaKernels {
    type Buffer = GpuBuffer;
    type Matrix = GpuMatrix;
    type Cache = GpuCache;

    fn free_bytes(&self) -> Result<Option<u64>, KernelError> {
        self.gpu.free_bytes().map(Some)
    }

    fn cache_format(&self, weights: WeightFormat) -> CacheFormat {
        match weights {
            WeightFormat::F32 => CacheFormat::F32,
            WeightFormat::F16 => CacheFormat::F16,
            WeightFormat::Bf16 | WeightFormat::Q8_0 | WeightFormat::Q4K => CacheFormat::Bf16,
        }
    }

    fn buffer(&self, elements: usize) -> Result<GpuBuffer, KernelError> {
        Ok(GpuBuffer { values: self.gpu.zeros(elements)?, rounded: None, rounding: ActivationRounding::None })
    }

    fn matrix(&self, weights: &Tensor, format: WeightFormat) -> Result<GpuMatrix, KernelError> {
        let matrix = GpuMatrix::upload(&self.gpu, weights, format)?;
        self.take_rounding(&matrix);
        Ok(matrix)
    }

    fn matrix_from_blocks(
        &self,
        format: WeightFormat,
        shape: [usize; 2],
        blocks: &[u8],
    ) -> Result<GpuMatrix, KernelError> {
        let matrix = GpuMatrix::from_blocks(&self.gpu, format, shape, blocks)?;
        self.take_rounding(&matrix);
        Ok(matrix)
    }

    fn matrix_from_floats(
        &self,
        format: WeightFormat,
        shape: [usize; 2],
        bytes: Vec<u8>,
    ) -> Result<GpuMatrix, KernelError> {
        let matrix = GpuMatrix::from_floats(&self.gpu, format, shape, &bytes)?;
        self.take_rounding(&matrix);
        Ok(matrix)
    }

    fn cache(&self, shape: CacheShape) -> Result<GpuCache, KernelError> {
        let elements = shape.elements().ok_or(KernelError::OutOfMemory { elements: usize::MAX })?;
        // Slots on the GPU are 32-bit numbers.
        if u32::try_from(shape.blocks * shape.block_tokens).is_err() {
            return Err(KernelError::OutOfMemory { elements });
        }
        // The program for f32 also has the kernels for other heads and the one that folds tiles.
        self.gpu.load(&[GpuProgram::Attention(CacheFormat::F32), GpuProgram::Attention(shape.format)])?;
        let bytes = elements.saturating_mul(shape.format.bytes());
        Ok(GpuCache { shape, keys: self.gpu.zeros(bytes)?, values: self.gpu.zeros(bytes)? })
    }

    fn write(&self, values: &[f32], buffer: &mut GpuBuffer) -> Result<(), KernelError> {
        buffer.rounding = ActivationRounding::None;
        if values.is_empty() {
            return Ok(());
        }
        self.gpu.write(values, &buffer.values)
    }

    fn read(&self, buffer: &GpuBuffer, values: &mut [f32]) -> Result<(), KernelError> {
        // The next batch's blocks may have the same address as this one's.
        self.scratch.borrow_mut().prepared = None;
        self.gpu.read(&buffer.values, values)
    }

    fn embed(&self, table: &GpuMatrix, ids: &[u32], out: &mut GpuBuffer) {
        self.keep(|| {
            let (rows, ids) = (ids.len(), self.gpu.upload(ids)?);
            table.embed(&self.gpu, ids, rows, self.overwritten(out));
            Ok(())
        });
    }

    fn select(&self, x: &GpuBuffer, width: usize, rows: &[usize], out: &mut GpuBuffer) {
        self.keep(|| {
            let arguments = [self.at(x), self.upload(rows.iter().copied())?, self.overwritten(out), width as u64];
            self.gpu.launch("select_rows", LaunchSize::rows(rows.len(), 256), &arguments);
            Ok(())
        });
    }

    fn norm(&self, x: &GpuBuffer, rows: usize, norm: NormWeights<'_, GpuBuffer>, out: &mut GpuBuffer) {
        let NormWeights { kind, epsilon, width, weight, bias } = norm;
        let (rounded, rounding) = self.rounded(out);
        let arguments = [
            self.at(x),
            self.at(weight),
            bias.map_or(0, |bias| self.at(bias)),
            self.at(out),
            rounded,
            rounding,
            width as u64,
            u64::from((epsilon as f32).to_bits()),
            u64::from(kind == NormKind::Layer),
        ];
        self.gpu.launch("normalise", LaunchSize::rows(rows, NORM_THREADS), &arguments);
    }

    fn linear(&self, x: &GpuBuffer, rows: usize, weight: &GpuMatrix, bias: Option<&GpuBuffer>, out: &mut GpuBuffer) {
        self.multiply((x, rows), weight, bias, (out, false));
    }

    fn linear_add(
        &self,
        x: &GpuBuffer,
        rows: usize,
        weight: &GpuMatrix,
        bias: Option<&GpuBuffer>,
        (sum, _): (&mut GpuBuffer, usize),
        _product: &mut GpuBuffer,
    ) {
        self.multiply((x, rows), weight, bias, (sum, true));
    }

    fn rotate(
        &self,
        qkv: &mut GpuBuffer,
        rows: usize,
        heads: AttentionHeads,
        rotary: RotaryLayout,
        angles: &GpuBuffer,
    ) {
        let arguments = [
            self.overwritten(qkv),
            self.at(angles),
            heads.qkv_width() as u64,
            (heads.query + heads.kv) as u64,
            heads.width as u64,
            rotary.width as u64,
            u64::from(rotary.pairs == RotaryPairs::Neighbours),
        ];
        let pairs = (heads.query + heads.kv) * rotary.width / 2;
        self.gpu.launch("rotate", LaunchSize::pairs(rows, pairs), &arguments);
    }

    fn append(
        &self,
        qkv: &GpuBuffer,
        heads: AttentionHeads,
        places: &[TokenPlace<'_>],
        cache: &mut GpuCache,
        layer: usize,
    ) {
        let to = cache.layer(&self.gpu, layer);
        self.prepared(places, to.shape, heads, |prepared, _| {
            prepared.append(&self.gpu, self.at(qkv), to, None);
            Ok(())
        });
    }

    fn rotate_and_append(
        &self,
        qkv: &mut GpuBuffer,
        heads: AttentionHeads,
        (rotary, angles): (RotaryLayout, &GpuBuffer),
        places: &[TokenPlace<'_>],
        cache: &mut GpuCache,
        layer: usize,
    ) {
        let (qkv, angles, to) = (self.overwritten(qkv), self.at(angles), cache.layer(&self.gpu, layer));
        self.prepared(places, to.shape, heads, |prepared, _| {
            prepared.append(&self.gpu, qkv, to, Some((rotary, angles)));
            Ok(())
        });
    }

    fn attend(
        &self,
        qkv: &GpuBuffer,
        heads: AttentionHeads,
        window: Option<usize>,
        places: &[TokenPlace<'_>],
        (cache, layer): (&GpuCache, usize),
        out: &mut GpuBuffer,
    ) {
        let from = cache.layer(&self.gpu, layer);
        let (rounded, rounding) = self.rounded(out);
        let out = (self.at(out), rounded, rounding);
        self.prepared(places, from.shape, heads, |prepared, partial| {
            prepared.attend(&self.gpu, (self.at(qkv), window), from, out, partial)
        });
    }

    fn activate(&self, activation: Activation, x: &mut GpuBuffer, elements: usize) {
        let (rounded, rounding) = self.rounded(x);
        let arguments = [number(activation), self.at(x), rounded, rounding, elements as u64];
        self.gpu.launch("activate", LaunchSize::elements(elements), &arguments);
    }

    fn activate_gated(&self, activation: Activation, x: &GpuBuffer, rows: usize, inner: usize, out: &mut GpuBuffer) {
        let (rounded, rounding) = self.rounded(out);
        let arguments = [number(activation), self.at(x), self.at(out), rounded, rounding, inner as u64];
        let columns = LaunchSize::elements(inner.div_ceil(4));
        let size = LaunchSize { blocks: [columns.blocks[0], rows as u32, 1], ..columns };
        self.gpu.launch("activate_gated", size, &arguments);
    }

    fn add(&self, x: &mut GpuBuffer, y: &GpuBuffer, elements: usize) {
        let arguments = [self.overwritten(x), self.at(y), elements as u64];
        self.gpu.launch("add", LaunchSize::elements(elements), &arguments);
    }

    fn add_rows(&self, x: &mut GpuBuffer, width: usize, rows: &[usize], columns: Range<usize>, y: &GpuBuffer) {
        self.keep(|| {
            let (first, count) = (columns.start as u64, columns.len() as u64);
            let indices = self.upload(rows.iter().copied())?;
            let arguments = [self.overwritten(x), indices, self.at(y), width as u64, first, count];
            self.gpu.launch("add_rows", LaunchSize::rows(rows.len(), 256), &arguments);
            Ok(())
        });
    }

    fn read_rows(
        &self,
        logits: &GpuBuffer,
        vocabulary: usize,
        tasks: &mut [LogitsTask<'_>],
    ) -> Result<Duration, KernelError> {
        // As in `read`.
        self.scratch.borrow_mut().prepared = None;
        self.reader.borrow_mut().read(&self.gpu, self.at(logits), vocabulary, tasks)
    }

    fn read_kept(&self, row: &KeptLogits, task: &mut LogitsTask<'_>) -> Result<(), KernelError> {
        let Some(Some(row)) = row.logits_on_gpu() else {
            return Err(KernelError::Device("the row was kept elsewhere".to_owned()));
        };
        let tasks = std::slice::from_mut(task);
        self.reader.borrow_mut().read(&self.gpu, self.gpu.address(row), row.len(), tasks).map(drop)
    }
}

/// Its number in the CUDA source.
fn number(activation: Activation) -> u64 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluErf => 1,
        Activation::GeluTanh => 2,
    }
}
