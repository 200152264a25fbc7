//! Attention over the paged cache with a running softmax.
//!
//! A row goes through its keys in tiles counted from its first key, in ascending order; blocks only say where a key
//! lies. So neither their size nor their order, nor the rows beside it, change a bit of the result.

use super::lanes::{LANES, Simd, Task, add_scaled, dot_products, exp, sum};
use crate::kernels::{CacheShape, Place};

/// Keys whose scores are held at once.
const TILE: usize = 32;

/// One query head of one row.
pub(super) struct Attend<'a> {
    pub(super) query: &'a [f32],
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    pub(super) shape: &'a CacheShape,
    pub(super) layer: usize,
    pub(super) place: Place<'a>,
    /// Of the key head within a cached token.
    pub(super) head_offset: usize,
    pub(super) window: Option<usize>,
    pub(super) out: &'a mut [f32],
}

impl Task for Attend<'_> {
    type Output = ();

    /// Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.query.len();
        let scale = 1.0 / (width as f32).sqrt();
        let end = self.place.position + 1;
        let first = self.window.map_or(0, |window| end.saturating_sub(window));
        let at = |position| self.shape.offset(self.layer, Place { position, ..self.place }) + self.head_offset;
        let (mut max, mut total) = (f32::NEG_INFINITY, 0.0);
        self.out.fill(0.0);
        for tile in (first..end).step_by(TILE) {
            let count = TILE.min(end - tile);
            let mut weights = [f32::NEG_INFINITY; TILE];
            for (i, weight) in weights.iter_mut().take(count).enumerate() {
                let key = &self.keys[at(tile + i)..][..width];
                let [[score]] = dot_products(simd, [self.query], [key]);
                *weight = score * scale;
            }
            let new_max = weights.iter().copied().fold(max, f32::max);
            if new_max > max {
                let shrink = exp::<S>(max - new_max);
                total *= shrink;
                self.out.iter_mut().for_each(|out| *out *= shrink);
                max = new_max;
            }
            let mut lanes = [0.0; LANES];
            for weights in weights.as_chunks_mut::<LANES>().0 {
                for lane in 0..LANES {
                    weights[lane] = exp::<S>(weights[lane] - max);
                    lanes[lane] += weights[lane];
                }
            }
            total += sum(lanes);
            for (i, &weight) in weights.iter().take(count).enumerate() {
                add_scaled(simd, weight, &self.values[at(tile + i)..][..width], self.out);
            }
        }
        self.out.iter_mut().for_each(|out| *out /= total);
    }
}
