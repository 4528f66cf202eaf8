//! Images that are not those of the recording.

use std::fs;

use super::{BootError, ImageRole, Kernel};
use crate::config::{MIN_MEMORY, MachineConfig};
use crate::machine::allocate_memory;

/// What is taken for a bzImage, with something of its own.
fn kernel_image(own: u8) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    image[1000] = own;
    image
}

fn config(kernel: &Kernel) -> MachineConfig {
    MachineConfig {
        kernel: kernel.id().clone(),
        initrd: kernel.initrd().cloned(),
        ..crate::testing::config(kernel.kind())
    }
}

#[test]
fn another_kernel_or_initrd_than_recorded_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let (kernel, initrd) = (file("kernel", &kernel_image(1)), file("initrd", b"070701"));
    let recorded = config(&Kernel::open(&kernel, Some(&initrd), &[]).unwrap());
    let again = |kernel: Option<&str>, initrd: Option<&str>| Kernel::open_recorded(&recorded, kernel, initrd, &[]);
    let (moved_kernel, moved_initrd) = (file("kernel-2", &kernel_image(1)), file("initrd-2", b"070701"));
    assert!(again(None, None).is_ok());
    assert!(
        again(Some(&moved_kernel), Some(&moved_initrd)).is_ok(),
        "the content counts"
    );

    let (other_kernel, other_initrd) = (file("kernel-3", &kernel_image(2)), file("initrd-3", b"070702"));
    for (kernel, initrd, wrong) in [
        (Some(other_kernel.as_str()), None, ImageRole::Kernel),
        (None, Some(other_initrd.as_str()), ImageRole::Initrd),
    ] {
        let error = again(kernel, initrd).unwrap_err();
        assert!(
            matches!(error, BootError::Different { role, .. } if role == wrong),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .contains(&format!("give the same image with --{wrong}")),
            "{error}"
        );
    }
    // The recorded file itself was replaced, or is gone.
    fs::write(&initrd, b"070702").unwrap();
    assert!(matches!(
        again(None, None),
        Err(BootError::Different {
            role: ImageRole::Initrd,
            ..
        })
    ));
    fs::remove_file(&initrd).unwrap();
    assert!(matches!(
        again(None, None),
        Err(BootError::Read {
            role: ImageRole::Initrd,
            ..
        })
    ));

    // One more than was recorded.
    let without = config(&Kernel::open(&kernel, None, &[]).unwrap());
    let with = Kernel::open_recorded(&without, None, Some(&moved_initrd), &[]).unwrap();
    let error = with.load(&without, &allocate_memory(MIN_MEMORY).unwrap()).unwrap_err();
    assert!(error.to_string().contains("without initrd was configured"), "{error}");
}

#[test]
fn an_empty_kernel_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kernel");
    fs::write(&path, b"").unwrap();
    let error = Kernel::open(&path.display().to_string(), None, &[]).unwrap_err();
    assert!(error.to_string().ends_with("the file is empty"), "{error}");
    // One byte is not empty; that it is no kernel is found as it is loaded.
    fs::write(&path, b"x").unwrap();
    assert!(Kernel::open(&path.display().to_string(), None, &[]).is_ok());
}
