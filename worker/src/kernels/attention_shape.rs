//! Heads, rotation and cache of attention.

/// Heads of attention and their width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionHeads {
    /// Query heads; a multiple of `kv`.
    pub query: usize,
    /// Key heads, and value heads.
    pub kv: usize,
    /// Elements of one head.
    pub width: usize,
}

impl AttentionHeads {
    /// Width of a row of queries, and of attention's result.
    #[must_use]
    pub fn query_width(&self) -> usize {
        self.query * self.width
    }

    /// Width of a row of keys, or of values.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.kv * self.width
    }

    /// Width of a row of queries, keys and values in this order.
    #[must_use]
    pub fn qkv_width(&self) -> usize {
        self.query_width() + 2 * self.kv_width()
    }
}

/// Which elements of a head form the rotated pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotaryLayout {
    /// Elements of a head that are rotated, from its beginning; even.
    pub width: usize,
    /// How they pair up.
    pub pairs: RotaryPairs,
}

/// How the rotated elements of a head pair up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryPairs {
    /// Element `i` with `i + width / 2` (GPT-NeoX, Llama).
    Halves,
    /// Element `2i` with `2i + 1` (GPT-J, CodeGen).
    Neighbours,
}

/// Position of a token in its sequence, and the block table of the sequence.
#[derive(Clone, Copy, Debug)]
pub struct TokenPlace<'a> {
    /// Index of the token in its sequence.
    pub position: usize,
    /// Block `i` holds the tokens from `i · block_tokens` on.
    pub blocks: &'a [u32],
}

/// Size of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Layers of the model.
    pub layers: usize,
    /// Blocks of each layer.
    pub blocks: usize,
    /// Tokens of a block.
    pub block_tokens: usize,
    /// Elements of one token's keys (or values) in one layer.
    pub kv_width: usize,
    /// How they are stored.
    pub format: CacheFormat,
}

impl CacheShape {
    /// Elements of all keys, or of all values; `None` when no memory could hold them.
    #[must_use]
    pub fn elements(&self) -> Option<usize> {
        let token = self.layers.checked_mul(self.kv_width)?;
        token.checked_mul(self.block_tokens)?.checked_mul(self.blocks)
    }

    /// Index of the first cached element of the token at `place`.
    #[must_use]
    pub fn offset(&self, layer: usize, place: TokenPlace<'_>) -> usize {
        let block = place.blocks[place.position / self.block_tokens] as usize;
        let slot = (layer * self.blocks + block) * self.block_tokens + place.position % self.block_tokens;
        slot * self.kv_width
    }
}

/// How a device stores keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CacheFormat {
    /// 32-bit floats.
    #[default]
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl CacheFormat {
    /// Bytes of one number.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}
