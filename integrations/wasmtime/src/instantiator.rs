//! Instances whose memories start from images.

use crate::error::{Error, Result};
use crate::image::{Digest, Image};
use crate::scope::{Scope, Start};
use crate::split::parse_export;
use std::sync::Arc;
use wasmtime::{AsContextMut, ExternType, Instance, InstancePre, Module};

/// Makes instances of one module, whose memories start from their images. The
/// engine takes its memories from a [`Pool`](crate::Pool). Any number of threads
/// may use one at once.
pub struct Instantiator<T: 'static> {
    pre: InstancePre<T>,
    starts: Arc<[Start]>,
}

impl<T: 'static> Clone for Instantiator<T> {
    fn clone(&self) -> Self {
        Instantiator {
            pre: self.pre.clone(),
            starts: self.starts.clone(),
        }
    }
}

impl<T: 'static> Instantiator<T> {
    /// `images` are those that the module names, in any order; none for a module
    /// that [`split`](crate::split()) has not made, whose data segments Wasmtime
    /// then copies at each instantiation. An image that the module names and
    /// that is not among them is an error, and so is one that the module does
    /// not name.
    pub fn new(pre: InstancePre<T>, images: &[Image]) -> Result<Instantiator<T>> {
        let starts = starts_of(pre.module(), images)?.into();
        Ok(Instantiator { pre, starts })
    }

    /// The module, with its imports.
    pub fn pre(&self) -> &InstancePre<T> {
        &self.pre
    }

    /// As `InstancePre::instantiate`. An engine that does not take its memories
    /// from a pool is an error where the module has images. (It is found out
    /// when the instance is there: the start function has run then.)
    pub fn instantiate(&self, store: impl AsContextMut<Data = T>) -> wasmtime::Result<Instance> {
        let scope = Scope::new(&self.starts, 0);
        let instance = scope.enter(|| self.pre.instantiate(store))?;
        check_images_are_used(&self.starts, scope.done())?;
        Ok(instance)
    }

    /// As `InstancePre::instantiate_async`, and as [`Self::instantiate`].
    #[cfg(feature = "async")]
    pub async fn instantiate_async(
        &self,
        store: impl AsContextMut<Data = T>,
    ) -> wasmtime::Result<Instance>
    where
        T: Send,
    {
        let mut scoped = asynchronous::Scoped {
            future: Box::pin(self.pre.instantiate_async(store)),
            starts: self.starts.clone(),
            done: 0,
        };
        let instance = (&mut scoped).await?;
        check_images_are_used(&self.starts, scoped.done)?;
        Ok(instance)
    }
}

#[cfg(feature = "async")]
mod asynchronous {
    use super::{Arc, Scope, Start};
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    /// A future in whose every poll a scope holds.
    pub(super) struct Scoped<F> {
        pub(super) future: Pin<Box<F>>,
        pub(super) starts: Arc<[Start]>,
        pub(super) done: usize,
    }

    impl<F: Future> Future for Scoped<F> {
        type Output = F::Output;
        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
            let this = &mut *self;
            let scope = Scope::new(&this.starts, this.done);
            let polled = scope.enter(|| this.future.as_mut().poll(context));
            this.done = scope.done();
            polled
        }
    }
}

/// `made`: how many memories a pool has been asked for.
fn check_images_are_used(starts: &[Start], made: usize) -> Result<()> {
    let left = starts.get(made..).unwrap_or_default();
    if left.iter().all(|start| matches!(start, Start::Zeroes)) {
        return Ok(());
    }
    Err(Error::new(
        "the instance's memories do not start from their images: its engine does not \
         take memories from a pool; make the engine of a Config that Pool::configure \
         has set up, and leave the allocation strategy as it is",
    ))
}

/// What the module's own memories start from, in their order.
fn starts_of(module: &Module, images: &[Image]) -> Result<Vec<Start>> {
    let imported = module
        .imports()
        .filter(|import| matches!(import.ty(), ExternType::Memory(_)))
        .count() as u64;
    let own = module.resources_required().num_memories as usize;
    let mut starts = vec![Start::Zeroes; own];
    let mut used = vec![false; images.len()];
    for export in module.exports() {
        let Some((index, digest)) = parse_export(export.name())? else {
            continue;
        };
        let ExternType::Memory(ty) = export.ty() else {
            return Err(Error::new(format!(
                "export \"{}\" of the module is no memory: only split() makes such names",
                export.name()
            )));
        };
        let Some(at) = images.iter().position(|image| image.digest() == digest) else {
            return Err(wrong_image(index, &digest, images));
        };
        used[at] = true;
        let image = &images[at];
        if image.size() > ty.minimum() * ty.page_size() {
            return Err(Error::new(format!(
                "the image of memory {index} has {} bytes, and the memory starts with {}",
                image.size(),
                ty.minimum() * ty.page_size()
            )));
        }
        let start = index
            .checked_sub(imported)
            .and_then(|own| starts.get_mut(usize::try_from(own).ok()?))
            .ok_or_else(|| {
                Error::new(format!(
                    "export \"{}\" names memory {index}, which is not one of the \
                     module's own",
                    export.name()
                ))
            })?;
        if matches!(start, Start::Image { .. }) {
            return Err(Error::new(format!(
                "the module names two images for memory {index}: only split() makes \
                 such names, and it makes one"
            )));
        }
        *start = Start::Image {
            image: image.clone(),
            minimum: ty.minimum(),
        };
    }
    if let Some(at) = used.iter().position(|used| !used) {
        return Err(Error::new(format!(
            "the image with digest {} belongs to no memory of the module: give each \
             module the images that split() made with it",
            images[at].digest()
        )));
    }
    Ok(starts)
}

fn wrong_image(index: u64, digest: &Digest, images: &[Image]) -> Error {
    let given: Vec<_> = images
        .iter()
        .map(|image| image.digest().to_string())
        .collect();
    Error::new(format!(
        "memory {index} of the module starts from the image with digest {digest}, \
         which is not given; given: {}",
        if given.is_empty() {
            "none".to_string()
        } else {
            given.join(", ")
        }
    ))
}
