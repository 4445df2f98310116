//! The ways of supplying Wasmtime with memories that are compared.

use firsttouch_wasmtime::{Image, Instantiator, Pool, PoolOptions, Split};
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, InstancePre, Linker, Module,
    PoolingAllocationConfig, Result, Store,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Wasmtime's pooling allocator, as it is by default.
    Pooling,
    /// The same, which keeps memory, and asks the kernel which pages have changed
    /// where that can be asked.
    PoolingKept,
    /// Wasmtime's default allocator.
    OnDemand,
    Firsttouch,
}

pub const ALL: [Way; 4] = [
    Way::Pooling,
    Way::PoolingKept,
    Way::OnDemand,
    Way::Firsttouch,
];

impl Way {
    pub fn name(self) -> &'static str {
        match self {
            Way::Pooling => "pooling",
            Way::PoolingKept => "pooling-kept",
            Way::OnDemand => "on-demand",
            Way::Firsttouch => "firsttouch",
        }
    }
}

/// What a way is to have room for.
pub struct Sizes {
    pub slots: u32,
    pub max_memory_bytes: u64,
    /// What PoolingKept keeps of each memory.
    pub kept_bytes: usize,
}

pub struct Supply {
    pub way: Way,
    pub engine: Engine,
    pub pool: Option<Pool>,
}

impl Supply {
    pub fn new(way: Way, sizes: &Sizes) -> Supply {
        let mut config = Config::new();
        let mut pool = None;
        match way {
            Way::Pooling | Way::PoolingKept => {
                let mut pooling = PoolingAllocationConfig::new();
                pooling
                    .total_core_instances(sizes.slots)
                    .total_memories(sizes.slots)
                    .total_tables(sizes.slots)
                    .max_memory_size(sizes.max_memory_bytes as usize);
                if way == Way::PoolingKept {
                    pooling
                        .linear_memory_keep_resident(sizes.kept_bytes)
                        .table_keep_resident(sizes.kept_bytes)
                        .max_unused_warm_slots(sizes.slots)
                        .pagemap_scan(Enabled::Auto);
                }
                config.allocation_strategy(InstanceAllocationStrategy::Pooling(pooling));
            }
            Way::OnDemand => {}
            Way::Firsttouch => {
                let made = Pool::new(&PoolOptions {
                    memories: sizes.slots,
                    max_memory_bytes: sizes.max_memory_bytes,
                    ..PoolOptions::default()
                })
                .unwrap();
                made.configure(&mut config);
                pool = Some(made);
            }
        }
        Supply {
            way,
            engine: Engine::new(&config).unwrap(),
            pool,
        }
    }

    /// Compiles a module, which has its data segments, or is split for
    /// firsttouch, and links it.
    pub fn app<T: 'static>(
        &self,
        wasm: &[u8],
        split: &Split,
        link: impl Fn(&mut Linker<T>, &Module),
    ) -> App<T> {
        let on_pool = self.way == Way::Firsttouch;
        let binary = if on_pool { &split.module } else { wasm };
        let module = Module::from_binary(&self.engine, binary).unwrap();
        let mut linker = Linker::new(&self.engine);
        link(&mut linker, &module);
        let pre = linker.instantiate_pre(&module).unwrap();
        if on_pool {
            let images: Vec<Image> = split.images.iter().map(|i| i.image.clone()).collect();
            App::OnPool(Instantiator::new(pre, &images).unwrap())
        } else {
            App::Own(pre)
        }
    }
}

/// A module that is ready to be instantiated.
pub enum App<T: 'static> {
    Own(InstancePre<T>),
    OnPool(Instantiator<T>),
}

impl<T: 'static> App<T> {
    pub fn instantiate(&self, store: &mut Store<T>) -> Result<wasmtime::Instance> {
        match self {
            App::Own(pre) => pre.instantiate(store),
            App::OnPool(instantiator) => instantiator.instantiate(store),
        }
    }
}
