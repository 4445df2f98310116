//! Takes active data segments out of a module and into images.
//!
//! What stays the same: every index, types and bounds, passive segments, start
//! function, and what `memory.init` and `data.drop` do with a segment that has
//! been taken out. (An active segment counts as dropped once the module has been
//! instantiated. Where code names data segments, an empty, passive one takes its
//! place: to `memory.init` and `data.drop` that is the same. Otherwise the section
//! goes.) A segment that is out of bounds stays, so that instantiation traps as
//! before.
//!
//! The module names each of its images in an export of the memory that starts
//! from it: `firsttouch.image/<memory>/sha256:<digest>`. Wasmtime keeps exports
//! in compiled modules, and forgets custom sections.

use crate::error::{Error, Result};
use crate::image::{Digest, Image, Segment};
use wasm_encoder as encoder;
use wasmparser::{
    ConstExpr, Data, DataKind, ExternalKind, MemoryType, Operator, Parser, Payload, TypeRef,
    Validator, WasmFeatures,
};

const EXPORT_PREFIX: &str = "firsttouch.image/";
const DIGEST_PREFIX: &str = "sha256:";

/// An image, and the memory that starts from it.
#[derive(Clone, Debug)]
pub struct SplitImage {
    /// The memory's index in the module, imported ones included.
    pub memory: u32,
    /// As large as the memory is at first.
    pub image: Image,
}

/// A module without the active data segments of its own memories, and the images
/// that stand in for them.
#[derive(Clone, Debug)]
pub struct Split {
    /// The module, in the binary format.
    pub module: Vec<u8>,
    /// One for each memory that had segments, by index.
    pub images: Vec<SplitImage>,
}

/// Takes the active data segments of `wasm`, a module in the binary format, out.
/// Those of a module that Wizer has made are its pre-initialized heap. `name` is
/// for people: that of the images.
///
/// Errors, which name the segment and the memory: a module that is not valid; one
/// that has been split already; a segment whose offset depends on an imported
/// global, or of a shared memory, or of one whose pages are not of 64 KiB.
pub fn split(name: &str, wasm: &[u8]) -> Result<Split> {
    Validator::new_with_features(WasmFeatures::all())
        .validate_all(wasm)
        .map_err(|error| Error::new(format!("the module is not valid: {error}")))?;
    let module = Contents::read(wasm)?;

    // What goes into which image, in the module's order: later ones win.
    let mut taken: Vec<Vec<Segment>> = vec![Vec::new(); module.memories.len()];
    let mut is_taken = vec![false; module.segments.len()];
    for (index, segment) in module.segments.iter().enumerate() {
        let DataKind::Active {
            memory_index,
            offset_expr,
        } = &segment.kind
        else {
            continue;
        };
        if *memory_index < module.imported_memories {
            continue;
        }
        let memory = &module.memories[*memory_index as usize];
        let offset = module
            .offset(offset_expr)
            .and_then(|offset| check_type(memory).map(|()| offset))
            .map_err(|why| {
                Error::new(format!(
                    "data segment {index} of memory {memory_index} cannot be taken \
                     out: {why}"
                ))
            })?;
        // A 32-bit offset is a number without a sign.
        let offset = if memory.memory64 {
            offset as u64
        } else {
            u64::from(offset as u32)
        };
        let end = offset.checked_add(segment.data.len() as u64);
        if end.is_none_or(|end| end > minimum_bytes(memory)) {
            continue;
        }
        is_taken[index] = true;
        if !segment.data.is_empty() {
            taken[*memory_index as usize].push(Segment {
                offset,
                bytes: segment.data,
            });
        }
    }

    let mut images = Vec::new();
    for (index, segments) in taken.iter().enumerate() {
        if segments.is_empty() {
            continue;
        }
        let size = minimum_bytes(&module.memories[index]);
        images.push(SplitImage {
            memory: index as u32,
            image: Image::from_segments(name, size, segments)?,
        });
    }
    let module = module.without(&is_taken, &images)?;
    Ok(Split { module, images })
}

fn minimum_bytes(memory: &MemoryType) -> u64 {
    memory
        .initial
        .saturating_mul(1 << memory.page_size_log2.unwrap_or(16))
}

fn check_type(memory: &MemoryType) -> Result<()> {
    if memory.shared {
        return Err(Error::new(
            "the memory is shared, and a pool's memories are not",
        ));
    }
    match memory.page_size_log2 {
        None | Some(16) => Ok(()),
        Some(log2) => Err(Error::new(format!(
            "the memory has pages of {} bytes, and a pool's have 65536",
            1_u64 << log2
        ))),
    }
}

/// The memory and the digest that an export's name says; none of any other name.
pub(crate) fn parse_export(name: &str) -> Result<Option<(u64, Digest)>> {
    let Some(rest) = name.strip_prefix(EXPORT_PREFIX) else {
        return Ok(None);
    };
    let parsed = rest.split_once('/').and_then(|(index, digest)| {
        let digest = digest.strip_prefix(DIGEST_PREFIX)?;
        Some((index.parse().ok()?, digest.parse().ok()?))
    });
    match parsed {
        Some(parsed) => Ok(Some(parsed)),
        None => Err(Error::new(format!(
            "export \"{name}\" of the module: {EXPORT_PREFIX}<memory>/{DIGEST_PREFIX}\
             <digest> is expected; only split() makes such names"
        ))),
    }
}

/// What of a module is looked at.
struct Contents<'a> {
    wasm: &'a [u8],
    imported_memories: u32,
    imported_globals: u32,
    /// Imported ones first.
    memories: Vec<MemoryType>,
    /// The initial values of the module's own globals.
    globals: Vec<ConstExpr<'a>>,
    segments: Vec<Data<'a>>,
    /// Whether code names data segments.
    names_segments: bool,
}

impl<'a> Contents<'a> {
    fn read(wasm: &'a [u8]) -> Result<Contents<'a>> {
        let mut module = Contents {
            wasm,
            imported_memories: 0,
            imported_globals: 0,
            memories: Vec::new(),
            globals: Vec::new(),
            segments: Vec::new(),
            names_segments: false,
        };
        for payload in Parser::new(0).parse_all(wasm) {
            match payload? {
                Payload::Version {
                    encoding: wasmparser::Encoding::Component,
                    ..
                } => {
                    return Err(Error::new(
                        "a component is given: split the modules in it before they are \
                         put together",
                    ));
                }
                Payload::ImportSection(imports) => {
                    for import in imports.into_imports() {
                        match import?.ty {
                            TypeRef::Memory(memory) => {
                                module.memories.push(memory);
                                module.imported_memories += 1;
                            }
                            TypeRef::Global(_) => module.imported_globals += 1,
                            _ => {}
                        }
                    }
                }
                Payload::MemorySection(memories) => {
                    for memory in memories {
                        module.memories.push(memory?);
                    }
                }
                Payload::GlobalSection(globals) => {
                    for global in globals {
                        module.globals.push(global?.init_expr);
                    }
                }
                Payload::ExportSection(exports) => {
                    for export in exports {
                        let name = export?.name;
                        if name.starts_with(EXPORT_PREFIX) {
                            return Err(Error::new(format!(
                                "the module has been split already: it exports \"{name}\""
                            )));
                        }
                    }
                }
                Payload::CodeSectionEntry(body) => {
                    for operator in body.get_operators_reader()? {
                        module.names_segments |= matches!(
                            operator?,
                            Operator::MemoryInit { .. }
                                | Operator::DataDrop { .. }
                                | Operator::ArrayNewData { .. }
                                | Operator::ArrayInitData { .. }
                        );
                    }
                }
                Payload::DataSection(segments) => {
                    for segment in segments {
                        module.segments.push(segment?);
                    }
                }
                _ => {}
            }
        }
        Ok(module)
    }

    /// The value of a constant expression of integers.
    fn offset(&self, expression: &ConstExpr<'_>) -> Result<i64> {
        let mut stack: Vec<i64> = Vec::new();
        for operator in expression.get_operators_reader() {
            // The module is valid: there are as many operands as it takes.
            let mut two = || (stack.pop().unwrap_or(0), stack.pop().unwrap_or(0));
            let value = match operator? {
                Operator::I32Const { value } => i64::from(value),
                Operator::I64Const { value } => value,
                Operator::I32Add | Operator::I64Add => {
                    let (right, left) = two();
                    left.wrapping_add(right)
                }
                Operator::I32Sub | Operator::I64Sub => {
                    let (right, left) = two();
                    left.wrapping_sub(right)
                }
                Operator::I32Mul | Operator::I64Mul => {
                    let (right, left) = two();
                    left.wrapping_mul(right)
                }
                Operator::GlobalGet { global_index } => {
                    match global_index.checked_sub(self.imported_globals) {
                        // It comes before whatever names it, so this ends.
                        Some(own) => self.offset(&self.globals[own as usize])?,
                        None => {
                            return Err(Error::new(format!(
                                "its offset depends on imported global {global_index}, \
                                 which is not known before instantiation; link the \
                                 module at a fixed address"
                            )));
                        }
                    }
                }
                Operator::End => continue,
                other => {
                    return Err(Error::new(format!(
                        "its offset has {other:?}, which is none of the integers' \
                         constants, additions, subtractions and multiplications"
                    )));
                }
            };
            stack.push(value);
        }
        Ok(stack.pop().unwrap_or(0))
    }

    /// The module without the segments of `is_taken`, and with the exports that
    /// name the images.
    fn without(&self, is_taken: &[bool], images: &[SplitImage]) -> Result<Vec<u8>> {
        let data = self.data_section(is_taken)?;
        let mut exports = ExportsOnce::new(images);
        let mut out = encoder::Module::new();
        for payload in Parser::new(0).parse_all(self.wasm) {
            let payload = payload?;
            match &payload {
                Payload::Version { .. } | Payload::End(_) | Payload::CodeSectionEntry(_) => {
                    continue;
                }
                Payload::ExportSection(old) => {
                    exports.write(&mut out, Some(old.clone()))?;
                    continue;
                }
                // The sections that come behind the exports' place.
                Payload::StartSection { .. }
                | Payload::ElementSection(_)
                | Payload::CodeSectionStart { .. } => exports.write(&mut out, None)?,
                Payload::DataCountSection { .. } => {
                    exports.write(&mut out, None)?;
                    if let Some(data) = &data {
                        out.section(&encoder::DataCountSection { count: data.len() });
                    }
                    continue;
                }
                Payload::DataSection(_) => {
                    exports.write(&mut out, None)?;
                    if let Some(data) = &data {
                        out.section(data);
                    }
                    continue;
                }
                _ => {}
            }
            let (id, range) = payload.as_section().ok_or_else(|| {
                Error::new(format!("the module has {payload:?}, which is not known"))
            })?;
            out.section(&encoder::RawSection {
                id,
                data: &self.wasm[range],
            });
        }
        Ok(out.finish())
    }

    /// The data segments that are left; none where there is nothing to say.
    fn data_section(&self, is_taken: &[bool]) -> Result<Option<encoder::DataSection>> {
        if !self.names_segments && is_taken.iter().all(|taken| *taken) {
            return Ok(None);
        }
        let mut section = encoder::DataSection::new();
        for (segment, taken) in self.segments.iter().zip(is_taken) {
            if *taken {
                // A passive one: an active one, even if it is empty, makes
                // Wasmtime run a function at each instantiation.
                if self.names_segments {
                    section.passive([]);
                }
                continue;
            }
            // As it was, byte by byte.
            section.raw(&self.wasm[segment.range.clone()]);
        }
        Ok(Some(section))
    }
}

/// Writes the exports once, where they belong.
struct ExportsOnce<'a> {
    images: &'a [SplitImage],
    written: bool,
}

impl<'a> ExportsOnce<'a> {
    fn new(images: &'a [SplitImage]) -> ExportsOnce<'a> {
        ExportsOnce {
            images,
            written: false,
        }
    }

    fn write(
        &mut self,
        out: &mut encoder::Module,
        old: Option<wasmparser::ExportSectionReader<'_>>,
    ) -> Result<()> {
        if std::mem::replace(&mut self.written, true) {
            return Ok(());
        }
        let mut section = encoder::ExportSection::new();
        for export in old.into_iter().flatten() {
            let export = export?;
            section.export(export.name, kind(export.kind), export.index);
        }
        for SplitImage { memory, image } in self.images {
            let name = format!("{EXPORT_PREFIX}{memory}/{DIGEST_PREFIX}{}", image.digest());
            section.export(&name, encoder::ExportKind::Memory, *memory);
        }
        if !section.is_empty() {
            out.section(&section);
        }
        Ok(())
    }
}

fn kind(kind: ExternalKind) -> encoder::ExportKind {
    match kind {
        ExternalKind::Func | ExternalKind::FuncExact => encoder::ExportKind::Func,
        ExternalKind::Table => encoder::ExportKind::Table,
        ExternalKind::Memory => encoder::ExportKind::Memory,
        ExternalKind::Global => encoder::ExportKind::Global,
        ExternalKind::Tag => encoder::ExportKind::Tag,
    }
}
