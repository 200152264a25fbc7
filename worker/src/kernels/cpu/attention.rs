//! Attention over the paged cache with a running softmax.
//!
//! A row goes through its keys in tiles counted from its first key, in ascending order; blocks only say where a key
//! lies. So neither their size nor their order, nor the rows beside it, change a bit of the result.

#![expect(clippy::needless_range_loop, reason = "iterators that are not inlined spill every register")]

use super::lanes::{Element, InstructionSet, LANES, Simd, Task, dot_products, exp, multiply_add, sum};
use super::memory::Pages;
use super::threads::Threads;
use crate::kernels::{CacheShape, Heads, Place};

/// Keys whose scores are held at once.
const TILE: usize = 32;

/// Query heads that go through the keys together, at most.
const TOGETHER: usize = 8;

/// Multiplications below which one thread works alone.
const PARALLEL_FROM: usize = 1 << 15;

/// Queries of a batch.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) qkv: &'a [f32],
    pub(super) heads: Heads,
    pub(super) window: Option<usize>,
    pub(super) places: &'a [Place<'a>],
}

/// Writes `[rows][heads][head_dim]`.
///
/// A task is some query heads of a row that share a key head: what is read of the cache serves them all.
pub(super) fn attend<W: Element>(
    (instructions, threads): (InstructionSet, &Threads),
    rows: Rows<'_>,
    (shape, layer): (&CacheShape, usize),
    [keys, values]: &[Pages<W>; 2],
    out: &mut [f32],
) {
    let Rows { qkv, heads, window, places } = rows;
    let sharing = heads.query / heads.kv;
    let together = (1..=TOGETHER).rev().find(|&count| sharing.is_multiple_of(count)).unwrap_or(1);
    let row_tasks = heads.query / together;
    let some_heads = |index: usize, out: &mut [f32]| {
        let (row, head) = (index / row_tasks, index % row_tasks * together);
        let queries = &qkv[row * heads.qkv_width() + head * heads.width..][..out.len()];
        let (place, kv_offset, width) = (places[row], head / sharing * heads.width, heads.width);
        instructions.run(Attend { queries, width, keys, values, shape, layer, place, kv_offset, window, out });
    };
    let out = &mut out[..places.len() * heads.query_width()];
    let keys_read: usize = places.iter().map(|place| place.position + 1).sum();
    let parallel = keys_read * heads.query_width() >= PARALLEL_FROM;
    threads.chunks(out, together * heads.width, parallel, some_heads);
}

/// Query heads of one row that share a key head.
struct Attend<'a, W> {
    queries: &'a [f32],
    /// Of a head.
    width: usize,
    keys: &'a [W],
    values: &'a [W],
    shape: &'a CacheShape,
    layer: usize,
    place: Place<'a>,
    /// Of the key head within a cached token.
    kv_offset: usize,
    window: Option<usize>,
    out: &'a mut [f32],
}

impl<W: Element> Task for Attend<'_, W> {
    type Output = ();

    /// Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let heads = self.queries.len() / self.width;
        let end = self.place.position + 1;
        let first = self.window.map_or(0, |window| end.saturating_sub(window));
        let (mut max, mut total) = ([f32::NEG_INFINITY; TOGETHER], [0.0; TOGETHER]);
        self.out.fill(0.0);
        for tile in (first..end).step_by(TILE) {
            let mut offsets = [0; TILE];
            let offsets = &mut offsets[..TILE.min(end - tile)];
            for i in 0..offsets.len() {
                let place = Place { position: tile + i, ..self.place };
                offsets[i] = self.shape.offset(self.layer, place) + self.kv_offset;
            }
            let mut weights = [[f32::NEG_INFINITY; TILE]; TOGETHER];
            let mut head = 0;
            while head < heads {
                head += match heads - head {
                    1 => self.scores::<1, 4, S>(simd, head, offsets, &mut weights),
                    2 | 3 => self.scores::<2, 4, S>(simd, head, offsets, &mut weights),
                    _ => self.scores::<4, 2, S>(simd, head, offsets, &mut weights),
                };
            }
            for head in 0..heads {
                let shrink = soften::<S>(&mut weights[head], &mut max[head], &mut total[head]);
                self.add_values(simd, head, offsets, &weights[head], shrink);
            }
        }
        for head in 0..heads {
            let total = total[head];
            self.out[head * self.width..][..self.width].iter_mut().for_each(|out| *out /= total);
        }
    }
}

impl<W: Element> Attend<'_, W> {
    /// The scores of `R` heads from `head` on, `C` keys at a time; returns `R`.
    #[inline(always)]
    fn scores<const R: usize, const C: usize, S: Simd>(
        &self,
        simd: S,
        head: usize,
        offsets: &[usize],
        scores: &mut [[f32; TILE]; TOGETHER],
    ) -> usize {
        let whole = offsets.len() - offsets.len() % C;
        for i in (0..whole).step_by(C) {
            self.some_scores::<R, C, S>(simd, head, (i, offsets), scores);
        }
        for i in whole..offsets.len() {
            self.some_scores::<R, 1, S>(simd, head, (i, offsets), scores);
        }
        R
    }

    #[inline(always)]
    fn some_scores<const R: usize, const C: usize, S: Simd>(
        &self,
        simd: S,
        head: usize,
        (first, offsets): (usize, &[usize]),
        scores: &mut [[f32; TILE]; TOGETHER],
    ) {
        let (mut queries, mut keys): ([&[f32]; R], [&[W]; C]) = ([&[]; R], [&[]; C]);
        for r in 0..R {
            queries[r] = &self.queries[(head + r) * self.width..][..self.width];
        }
        for c in 0..C {
            keys[c] = &self.keys[offsets[first + c]..][..self.width];
        }
        let scale = 1.0 / (self.width as f32).sqrt();
        let dots = dot_products(simd, queries, keys);
        for r in 0..R {
            for c in 0..C {
                scores[head + r][first + c] = dots[r][c] * scale;
            }
        }
    }

    /// `out = shrink · out + weights · values` for one head, the values in ascending order.
    #[inline(always)]
    fn add_values<S: Simd>(&mut self, simd: S, head: usize, offsets: &[usize], weights: &[f32; TILE], shrink: f32) {
        let out = &mut self.out[head * self.width..][..self.width];
        let (chunks, rest) = out.as_chunks_mut::<LANES>();
        let columns = chunks.len() * LANES;
        for (index, out) in chunks.iter_mut().enumerate() {
            for out in &mut *out {
                *out *= shrink;
            }
            let mut sum = simd.load_f32(out);
            for i in 0..offsets.len() {
                let (values, _) = self.values[offsets[i] + index * LANES..].as_chunks();
                sum = simd.multiply_add(simd.splat(weights[i]), W::load(simd, &values[0]), sum);
            }
            simd.store(sum, out);
        }
        for (index, out) in rest.iter_mut().enumerate() {
            *out *= shrink;
            for i in 0..offsets.len() {
                *out = multiply_add::<S>(weights[i], self.values[offsets[i] + columns + index].widen(), *out);
            }
        }
    }
}

/// Scores to weights relative to the largest score so far, which they may raise; returns by what earlier weights
/// shrink.
#[inline(always)]
fn soften<S: Simd>(weights: &mut [f32; TILE], max: &mut f32, total: &mut f32) -> f32 {
    let new_max = weights.iter().copied().fold(*max, f32::max);
    let shrink = if new_max > *max { exp::<S>(*max - new_max) } else { 1.0 };
    *max = new_max;
    let mut lanes = [0.0; LANES];
    for weights in weights.as_chunks_mut::<LANES>().0 {
        for lane in 0..LANES {
            weights[lane] = exp::<S>(weights[lane] - new_max);
            lanes[lane] += weights[lane];
        }
    }
    *total = *total * shrink + sum(lanes);
    shrink
}
