//! Where things lie in a vmlinux: a 64-bit ELF executable for x86-64, as hostile input (System V ABI, AMD64
//! supplement).
//!
//! Offsets are checked against the file once, here; whatever uses a [`Segment`] or [`Section`] may index with them.

use std::ops::Range;

use object::LittleEndian;
use object::elf::{EM_X86_64, FileHeader64, Machine, PT_LOAD, SHF_ALLOC, SHF_EXECINSTR, SHT_NOBITS};
use object::read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _};

/// Most segments and sections: real kernels have 5 and 50.
const MAX_ENTRIES: usize = 4096;

/// A loadable segment with something in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub file: Range<usize>,
    pub virt: u64,
    pub phys: u64,
    /// Bytes in memory, at least those in the file.
    pub memory: u64,
}

/// A section that is loaded and has bytes in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    pub name: String,
    pub virt: u64,
    pub file: Range<usize>,
    pub executable: bool,
}

/// The parts of a vmlinux.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Physical address of the 64-bit entry point, `startup_64`.
    pub entry: u64,
    /// By physical address, without overlaps.
    pub segments: Vec<Segment>,
    pub sections: Vec<Section>,
}

/// What is wrong with a vmlinux.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// It does not parse as an ELF file.
    #[error(transparent)]
    Parse(#[from] object::read::Error),
    /// For another processor.
    #[error("machine {EM_X86_64:?} (x86-64) expected, found {found:?}")]
    Machine { found: Machine },
    /// Nothing is loaded where it is entered.
    #[error("its entry point {entry:#x} is in no segment")]
    Entry { entry: u64 },
    /// A segment's bytes are not in the file.
    #[error("the segment at {phys:#x} reaches beyond the file")]
    SegmentCut { phys: u64 },
    /// A segment is smaller in memory than in the file, or larger than memory can be.
    #[error("the segment at {phys:#x} has {size} bytes in the file and {memory} in memory")]
    SegmentSize { phys: u64, size: u64, memory: u64 },
    /// Two segments at one place.
    #[error("the segments at {first:#x} and {second:#x} overlap")]
    Overlap { first: u64, second: u64 },
    /// Nothing to load.
    #[error("it has no segment to load")]
    Empty,
    /// A section's bytes are not in the file.
    #[error("section {name} reaches beyond the file")]
    SectionCut { name: String },
}

fn range(image: &[u8], offset: u64, size: u64) -> Option<Range<usize>> {
    let begin = usize::try_from(offset).ok()?;
    let end = begin.checked_add(usize::try_from(size).ok()?)?;
    image.get(begin..end).map(|_| begin..end)
}

impl Layout {
    /// Reads the headers of `image`.
    ///
    /// # Errors
    /// If it is no x86-64 ELF executable, or its headers contradict themselves.
    pub fn parse(image: &[u8]) -> Result<Self, LayoutError> {
        let header = FileHeader64::<LittleEndian>::parse(image)?;
        let endian = header.endian()?;
        if header.e_machine(endian) != EM_X86_64 {
            return Err(LayoutError::Machine {
                found: header.e_machine(endian),
            });
        }
        let layout = Layout {
            entry: header.e_entry(endian),
            segments: segments(image, header, endian)?,
            sections: sections(image, header, endian)?,
        };
        if !layout
            .segments
            .iter()
            .any(|s| (s.phys..s.phys + s.memory).contains(&layout.entry))
        {
            return Err(LayoutError::Entry { entry: layout.entry });
        }
        Ok(layout)
    }

    /// One section by name.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// First physical address behind the kernel, with its bss and brk.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.segments.last().map_or(0, |s| s.phys + s.memory)
    }

    /// Lowest physical address.
    #[must_use]
    pub fn begin(&self) -> u64 {
        self.segments.first().map_or(0, |s| s.phys)
    }

    /// Where the byte at virtual address `virt` lies in the file, for an address in one of the sections.
    #[must_use]
    pub fn offset(&self, virt: u64) -> Option<usize> {
        self.sections.iter().find_map(|section| section.offset(virt))
    }

    /// Sections with instructions.
    pub fn executable(&self) -> impl Iterator<Item = &Section> {
        self.sections.iter().filter(|section| section.executable)
    }
}

impl Section {
    /// Where the byte at virtual address `virt` lies in the file.
    #[must_use]
    pub fn offset(&self, virt: u64) -> Option<usize> {
        let distance = usize::try_from(virt.checked_sub(self.virt)?).ok()?;
        (distance < self.file.len()).then(|| self.file.start + distance)
    }
}

fn segments(
    image: &[u8],
    header: &FileHeader64<LittleEndian>,
    endian: LittleEndian,
) -> Result<Vec<Segment>, LayoutError> {
    let mut found = Vec::new();
    let headers = header.program_headers(endian, image)?;
    for segment in headers.iter().take(MAX_ENTRIES).filter(|s| s.p_type(endian) == PT_LOAD) {
        let (phys, size, memory) = (
            segment.p_paddr(endian),
            segment.p_filesz(endian),
            segment.p_memsz(endian),
        );
        let file = range(image, segment.p_offset(endian), size).ok_or(LayoutError::SegmentCut { phys })?;
        if memory < size || phys.checked_add(memory).is_none() {
            return Err(LayoutError::SegmentSize { phys, size, memory });
        }
        if memory > 0 {
            let virt = segment.p_vaddr(endian);
            found.push(Segment {
                file,
                virt,
                phys,
                memory,
            });
        }
    }
    found.sort_by_key(|segment| segment.phys);
    for pair in found.windows(2) {
        if pair[0].phys + pair[0].memory > pair[1].phys {
            let (first, second) = (pair[0].phys, pair[1].phys);
            return Err(LayoutError::Overlap { first, second });
        }
    }
    if found.is_empty() {
        return Err(LayoutError::Empty);
    }
    Ok(found)
}

fn sections(
    image: &[u8],
    header: &FileHeader64<LittleEndian>,
    endian: LittleEndian,
) -> Result<Vec<Section>, LayoutError> {
    let mut found = Vec::new();
    let table = header.sections(endian, image)?;
    for section in table.iter().take(MAX_ENTRIES) {
        let flags = section.sh_flags(endian);
        if flags.0 & SHF_ALLOC.0 == 0 || section.sh_type(endian) == SHT_NOBITS {
            continue;
        }
        let name = table.section_name(endian, section)?;
        let name = String::from_utf8_lossy(name).into_owned();
        let Some(file) = range(image, section.sh_offset(endian), section.sh_size(endian)) else {
            return Err(LayoutError::SectionCut { name });
        };
        found.push(Section {
            virt: section.sh_addr(endian),
            file,
            executable: flags.0 & SHF_EXECINSTR.0 != 0,
            name,
        });
    }
    Ok(found)
}
