/* The header, compiled as C99 with every warning, and each initializer. */

#include "firsttouch/capi/firsttouch.h"

int main(void) {
  ft_error error = FT_ERROR_INIT;
  ft_trap trap = FT_TRAP_INIT;
  ft_layout_options layout_options = FT_LAYOUT_OPTIONS_INIT;
  ft_layout layout = FT_LAYOUT_INIT;
  ft_pool_options pool_options = FT_POOL_OPTIONS_INIT;
  ft_pool_info pool_info = FT_POOL_INFO_INIT;
  ft_image_options image_options = FT_IMAGE_OPTIONS_INIT;
  ft_source_options source_options = FT_SOURCE_OPTIONS_INIT;
  ft_open_options open_options = FT_OPEN_OPTIONS_INIT;
  ft_write_options write_options = FT_WRITE_OPTIONS_INIT;
  ft_image_info image_info = FT_IMAGE_INFO_INIT;
  ft_memory_options memory_options = FT_MEMORY_OPTIONS_INIT;
  ft_memory_info memory_info = FT_MEMORY_INFO_INIT;
  ft_memory_pages memory_pages = FT_MEMORY_PAGES_INIT;
  ft_location location = FT_LOCATION_INIT;
  ft_store_options store_options = FT_STORE_OPTIONS_INIT;
  ft_stack_pool_options stack_options = FT_STACK_POOL_OPTIONS_INIT;
  ft_table_pool_options table_options = FT_TABLE_POOL_OPTIONS_INIT;
  return error.struct_size == sizeof error && trap.struct_size == sizeof trap &&
                 layout_options.struct_size == sizeof layout_options &&
                 layout.struct_size == sizeof layout &&
                 pool_options.struct_size == sizeof pool_options &&
                 pool_info.struct_size == sizeof pool_info &&
                 image_options.struct_size == sizeof image_options &&
                 source_options.struct_size == sizeof source_options &&
                 open_options.struct_size == sizeof open_options &&
                 write_options.struct_size == sizeof write_options &&
                 image_info.struct_size == sizeof image_info &&
                 memory_options.struct_size == sizeof memory_options &&
                 memory_info.struct_size == sizeof memory_info &&
                 memory_pages.struct_size == sizeof memory_pages &&
                 location.struct_size == sizeof location &&
                 store_options.struct_size == sizeof store_options &&
                 stack_options.struct_size == sizeof stack_options &&
                 table_options.struct_size == sizeof table_options &&
                 ft_version_number() == FT_VERSION_MAJOR * 1000000u +
                                            FT_VERSION_MINOR * 1000u +
                                            FT_VERSION_PATCH
             ? 0
             : 1;
}
