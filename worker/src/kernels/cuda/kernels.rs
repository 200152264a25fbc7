//! The operations of a decoder as launches on a GPU.

use std::ops::Range;
use std::time::Duration;

use candle_core::Tensor;

use super::gpu::Size;
use super::matrix::{Matrix, Rounding};
use super::program::Program;
use super::{Buffer, Cache, Cuda};
use crate::kernels::{
    Activation, CacheFormat, CacheShape, Heads, KernelError, Kernels, NormKind, NormWeights, Pairs, Place,
    RotaryLayout, WeightFormat,
};
use crate::rows::{KeptRow, RowTask};

/// As `elementwise.cu` has it.
const NORM_THREADS: u32 = 512;

impl Kernels for Cuda {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type Cache = Cache;

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

    fn buffer(&self, elements: usize) -> Result<Buffer, KernelError> {
        Ok(Buffer { values: self.gpu.zeros(elements)?, rounded: None, rounding: Rounding::None })
    }

    fn matrix(&self, weights: &Tensor, format: WeightFormat) -> Result<Matrix, KernelError> {
        let matrix = Matrix::upload(&self.gpu, weights, format)?;
        self.take_rounding(&matrix);
        Ok(matrix)
    }

    fn matrix_from_blocks(
        &self,
        format: WeightFormat,
        shape: [usize; 2],
        blocks: &[u8],
    ) -> Result<Matrix, KernelError> {
        let matrix = Matrix::from_blocks(&self.gpu, format, shape, blocks)?;
        self.take_rounding(&matrix);
        Ok(matrix)
    }

    fn matrix_from_floats(
        &self,
        format: WeightFormat,
        shape: [usize; 2],
        bytes: Vec<u8>,
    ) -> Result<Matrix, KernelError> {
        let matrix = Matrix::from_floats(&self.gpu, format, shape, &bytes)?;
        self.take_rounding(&matrix);
        Ok(matrix)
    }

    fn cache(&self, shape: CacheShape) -> Result<Cache, KernelError> {
        let elements = shape.elements().ok_or(KernelError::OutOfMemory { elements: usize::MAX })?;
        // Slots on the GPU have 32 bits.
        if u32::try_from(shape.blocks * shape.block_tokens).is_err() {
            return Err(KernelError::OutOfMemory { elements });
        }
        // Programs of f32 are also for heads that tensor cores do not take, and have the fold of tiles.
        self.gpu.load(&[Program::Attention(CacheFormat::F32), Program::Attention(shape.format)])?;
        let bytes = elements.saturating_mul(shape.format.bytes());
        Ok(Cache { shape, keys: self.gpu.zeros(bytes)?, values: self.gpu.zeros(bytes)? })
    }

    fn write(&self, values: &[f32], buffer: &mut Buffer) -> Result<(), KernelError> {
        buffer.rounding = Rounding::None;
        if values.is_empty() {
            return Ok(());
        }
        self.gpu.write(values, &buffer.values)
    }

    fn read(&self, buffer: &Buffer, values: &mut [f32]) -> Result<(), KernelError> {
        // Blocks of other batches may come to lie where those of this one do.
        self.scratch.borrow_mut().prepared = None;
        self.gpu.read(&buffer.values, values)
    }

    fn embed(&self, table: &Matrix, ids: &[u32], out: &mut Buffer) {
        self.keep(|| {
            let (rows, ids) = (ids.len(), self.gpu.upload(ids)?);
            table.embed(&self.gpu, ids, rows, self.overwritten(out));
            Ok(())
        });
    }

    fn select(&self, x: &Buffer, width: usize, rows: &[usize], out: &mut Buffer) {
        self.keep(|| {
            let arguments = [self.at(x), self.upload(rows.iter().copied())?, self.overwritten(out), width as u64];
            self.gpu.launch("select_rows", Size::rows(rows.len(), 256), &arguments);
            Ok(())
        });
    }

    fn norm(&self, x: &Buffer, rows: usize, norm: NormWeights<'_, Buffer>, out: &mut Buffer) {
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
        self.gpu.launch("normalise", Size::rows(rows, NORM_THREADS), &arguments);
    }

    fn linear(&self, x: &Buffer, rows: usize, weight: &Matrix, bias: Option<&Buffer>, out: &mut Buffer) {
        self.multiply((x, rows), weight, bias, (out, false));
    }

    fn linear_add(
        &self,
        x: &Buffer,
        rows: usize,
        weight: &Matrix,
        bias: Option<&Buffer>,
        (sum, _): (&mut Buffer, usize),
        _product: &mut Buffer,
    ) {
        self.multiply((x, rows), weight, bias, (sum, true));
    }

    fn rotate(&self, qkv: &mut Buffer, rows: usize, heads: Heads, rotary: RotaryLayout, angles: &Buffer) {
        let arguments = [
            self.overwritten(qkv),
            self.at(angles),
            heads.qkv_width() as u64,
            (heads.query + heads.kv) as u64,
            heads.width as u64,
            rotary.width as u64,
            u64::from(rotary.pairs == Pairs::Neighbours),
        ];
        let pairs = (heads.query + heads.kv) * rotary.width / 2;
        self.gpu.launch("rotate", Size::pairs(rows, pairs), &arguments);
    }

    fn append(&self, qkv: &Buffer, heads: Heads, places: &[Place<'_>], cache: &mut Cache, layer: usize) {
        let to = cache.layer(&self.gpu, layer);
        self.prepared(places, to.shape, heads, |prepared, _| {
            prepared.append(&self.gpu, self.at(qkv), to, None);
            Ok(())
        });
    }

    fn rotate_and_append(
        &self,
        qkv: &mut Buffer,
        heads: Heads,
        (rotary, angles): (RotaryLayout, &Buffer),
        places: &[Place<'_>],
        cache: &mut Cache,
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
        qkv: &Buffer,
        heads: Heads,
        window: Option<usize>,
        places: &[Place<'_>],
        (cache, layer): (&Cache, usize),
        out: &mut Buffer,
    ) {
        let from = cache.layer(&self.gpu, layer);
        let (rounded, rounding) = self.rounded(out);
        let out = (self.at(out), rounded, rounding);
        self.prepared(places, from.shape, heads, |prepared, partial| {
            prepared.attend(&self.gpu, (self.at(qkv), window), from, out, partial)
        });
    }

    fn activate(&self, activation: Activation, x: &mut Buffer, elements: usize) {
        let (rounded, rounding) = self.rounded(x);
        let arguments = [number(activation), self.at(x), rounded, rounding, elements as u64];
        self.gpu.launch("activate", Size::elements(elements), &arguments);
    }

    fn activate_gated(&self, activation: Activation, x: &Buffer, rows: usize, inner: usize, out: &mut Buffer) {
        let (rounded, rounding) = self.rounded(out);
        let arguments = [number(activation), self.at(x), self.at(out), rounded, rounding, inner as u64];
        let columns = Size::elements(inner.div_ceil(4));
        let size = Size { blocks: [columns.blocks[0], rows as u32, 1], ..columns };
        self.gpu.launch("activate_gated", size, &arguments);
    }

    fn add(&self, x: &mut Buffer, y: &Buffer, elements: usize) {
        let arguments = [self.overwritten(x), self.at(y), elements as u64];
        self.gpu.launch("add", Size::elements(elements), &arguments);
    }

    fn add_rows(&self, x: &mut Buffer, width: usize, rows: &[usize], columns: Range<usize>, y: &Buffer) {
        self.keep(|| {
            let (first, count) = (columns.start as u64, columns.len() as u64);
            let indices = self.upload(rows.iter().copied())?;
            let arguments = [self.overwritten(x), indices, self.at(y), width as u64, first, count];
            self.gpu.launch("add_rows", Size::rows(rows.len(), 256), &arguments);
            Ok(())
        });
    }

    fn read_rows(
        &self,
        logits: &Buffer,
        vocabulary: usize,
        tasks: &mut [RowTask<'_>],
    ) -> Result<Duration, KernelError> {
        // As in `read`.
        self.scratch.borrow_mut().prepared = None;
        self.reader.borrow_mut().read(&self.gpu, self.at(logits), vocabulary, tasks)
    }

    fn read_kept(&self, row: &KeptRow, task: &mut RowTask<'_>) -> Result<(), KernelError> {
        let Some(Some(row)) = row.row_on_gpu() else {
            return Err(KernelError::Device("the row was kept elsewhere".to_owned()));
        };
        let tasks = std::slice::from_mut(task);
        self.reader.borrow_mut().read(&self.gpu, self.gpu.address(row), row.len(), tasks).map(drop)
    }
}

/// As kernels are told.
fn number(activation: Activation) -> u64 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluErf => 1,
        Activation::GeluTanh => 2,
    }
}
