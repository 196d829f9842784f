/*
 * safetensors.c - see safetensors.h. Headers are read with Jansson.
 */
#include "safetensors.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* The format's own limit for a header. */
#define MAX_HEADER ((uint64_t) 100 * 1000 * 1000)
#define MAX_FILES 4096
/* Bytes taken from the start and the end of each tensor into the digest. */
#define DIGEST_SAMPLE ((size_t) 1024)

typedef struct MappedFile
{
	const char *path;
	uint8_t    *bytes;
	size_t		size;
	bool		borrowed;		/* the caller's bytes, not a mapping */
	uint64_t	header;			/* bytes of the header */
	struct MappedFile *next;
} MappedFile;

struct TensorStore
{
	Arena	   *arena;
	MappedFile *files;			/* in the order of their names */
	StoredTensor *tensors;		/* sorted by name */
	int			count;
	int			capacity;
};

/* Remove the first occurrence of part from name, in place. */
static void
remove_part(char *name, const char *part)
{
	char	   *at = strstr(name, part);

	if (at != NULL)
		memmove(at, at + strlen(part), strlen(at + strlen(part)) + 1);
}

/* The name that the model knows a tensor by, whichever of the usual wrappers wrote it. */
static char *
plain_name(Arena *arena, const char *stored)
{
	char	   *name = arena_copy_text(arena, stored, strlen(stored));

	if (name == NULL)
		return NULL;
	if (strncmp(name, "module.", 7) == 0)
		remove_part(name, "module.");
	if (strncmp(name, "lang_encoder.", 13) == 0)
		remove_part(name, "lang_encoder.");
	if (strncmp(name, "base_model.model.", 17) == 0)
		remove_part(name, "base_model.model.");
	remove_part(name, "decoder_layer.");
	remove_part(name, ".default");
	return name;
}

static bool
read_type(const char *text, DataType *type)
{
	if (strcmp(text, "F32") == 0)
		*type = TYPE_F32;
	else if (strcmp(text, "F16") == 0)
		*type = TYPE_F16;
	else if (strcmp(text, "BF16") == 0)
		*type = TYPE_BF16;
	else if (strcmp(text, "I8") == 0)
		*type = TYPE_I8;
	else if (strcmp(text, "U8") == 0)
		*type = TYPE_U8;
	else
		return false;
	return true;
}

/*
 * Read "shape"; false when it is not an array of 1 to 4 positive sizes. elements receives the
 * product.
 */
static bool
read_shape(json_t *shape, StoredTensor *tensor, uint64_t *elements)
{
	*elements = 1;
	if (!json_is_array(shape) || json_array_size(shape) > SAFETENSORS_MAX_DIMENSIONS)
		return false;
	tensor->dimensions = (int) json_array_size(shape);
	for (int i = 0; i < tensor->dimensions; i++)
	{
		json_t	   *size = json_array_get(shape, (size_t) i);
		json_int_t	value = json_is_integer(size) ? json_integer_value(size) : -1;

		if (value < 1 || value > INT_MAX || *elements > UINT64_MAX / 8 / (uint64_t) value)
			return false;
		tensor->shape[i] = (int) value;
		*elements *= (uint64_t) value;
	}
	return true;
}

static bool
tensor_fault(const MappedFile *file, const char *name, Status *status, const char *what)
{
	status_set(status, STATUS_INVALID_MODEL, "tensor \"%s\" %s", name, what);
	return status_detail(status, "The file is \"%s\".", file->path);
}

/* Check one entry of a header and append it. */
static bool
add_tensor(TensorStore *store, const MappedFile *file, const char *name, json_t *entry,
		   Status *status)
{
	StoredTensor *tensor = &store->tensors[store->count];
	json_t	   *offsets = json_object_get(entry, "data_offsets");
	const char *type = json_string_value(json_object_get(entry, "dtype"));
	uint64_t	data_size = file->size - 8 - file->header;
	uint64_t	elements;
	json_int_t	begin;
	json_int_t	end;

	if (type == NULL || !read_type(type, &tensor->type))
		return tensor_fault(file, name, status, "has a type other than F32, F16, BF16, I8 and U8");
	if (!read_shape(json_object_get(entry, "shape"), tensor, &elements))
		return tensor_fault(file, name, status, "has a shape that is not 1 to 4 positive sizes");
	begin = json_integer_value(json_array_get(offsets, 0));
	end = json_integer_value(json_array_get(offsets, 1));
	if (json_array_size(offsets) != 2 || begin < 0 || end < begin)
		return tensor_fault(file, name, status, "has no valid data_offsets");
	if ((uint64_t) end > data_size)
	{
		tensor_fault(file, name, status, "lies beyond the end of its file");
		return status_detail(
			status,
			"The file \"%s\" has %zu bytes; the tensor ends at byte %llu. It may be truncated.",
			file->path, file->size, (unsigned long long) (8 + file->header + (uint64_t) end));
	}
	if ((uint64_t) (end - begin) != elements * data_type_size(tensor->type))
		return tensor_fault(file, name, status, "has data_offsets that do not fit its shape");
	tensor->bytes = (size_t) (end - begin);
	tensor->data = file->bytes + 8 + file->header + begin;
	tensor->file = file->path;
	tensor->stored_name = arena_copy_text(store->arena, name, strlen(name));
	tensor->name = plain_name(store->arena, name);
	if (tensor->stored_name == NULL || tensor->name == NULL)
		return status_out_of_memory(status, strlen(name));
	tensor->used = false;
	store->count++;
	return true;
}

/* Make room for more tensors; the old array stays in the arena. */
static bool
reserve_tensors(TensorStore *store, size_t more, Status *status)
{
	size_t		need = (size_t) store->count + more;
	StoredTensor *tensors;

	if (need <= (size_t) store->capacity)
		return true;
	tensors = arena_take_array(store->arena, need, sizeof(StoredTensor));
	if (tensors == NULL || need > INT_MAX)
		return status_out_of_memory(status, need * sizeof(StoredTensor));
	if (store->count > 0)
		memcpy(tensors, store->tensors, (size_t) store->count * sizeof(StoredTensor));
	store->tensors = tensors;
	store->capacity = (int) need;
	return true;
}

static bool
add_header(TensorStore *store, const MappedFile *file, json_t *header, Status *status)
{
	const char *name;
	json_t	   *entry;

	if (!json_is_object(header))
		return status_set(status, STATUS_INVALID_MODEL, "the header of \"%s\" is not a JSON object",
						  file->path);
	if (!reserve_tensors(store, json_object_size(header), status))
		return false;
	json_object_foreach(header, name, entry)
	{
		if (strcmp(name, "__metadata__") == 0)
			continue;
		if (!add_tensor(store, file, name, entry, status))
			return false;
	}
	return true;
}

static bool
read_header(TensorStore *store, MappedFile *file, Status *status)
{
	json_error_t error;
	json_t	   *header;
	bool		good;

	if (file->size < 8)
		return status_set(status, STATUS_INVALID_MODEL, "file \"%s\" is truncated: %zu bytes",
						  file->path, file->size);
	memcpy(&file->header, file->bytes, 8);
	if (file->header > MAX_HEADER || file->header > file->size - 8)
	{
		status_set(status, STATUS_INVALID_MODEL,
				   "file \"%s\" is truncated or not in safetensors format", file->path);
		return status_detail(status, "Its header is said to have %llu bytes, the file has %zu.",
							 (unsigned long long) file->header, file->size);
	}
	header = json_loadb((const char *) file->bytes + 8, (size_t) file->header, 0, &error);
	if (header == NULL)
	{
		status_set(status, STATUS_INVALID_MODEL, "the header of \"%s\" is not valid JSON",
				   file->path);
		return status_detail(status, "%s at byte %d.", error.text, error.position);
	}
	good = add_header(store, file, header, status);
	json_decref(header);
	return good;
}

static bool
map_file(MappedFile *file, Status *status)
{
	struct stat info;
	int			fd = open(file->path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &info) != 0)
	{
		status_set(status, STATUS_INVALID_MODEL, "could not open file \"%s\": %s", file->path,
				   strerror(errno));
		if (fd >= 0)
			close(fd);
		return false;
	}
	file->size = (size_t) info.st_size;
	if (file->size > 0)
	{
		file->bytes = mmap(NULL, file->size, PROT_READ, MAP_PRIVATE, fd, 0);
		if (file->bytes == MAP_FAILED)
		{
			file->bytes = NULL;
			status_set(status, STATUS_INVALID_MODEL, "could not map file \"%s\": %s", file->path,
					   strerror(errno));
		}
	}
	close(fd);
	return file->size == 0 || file->bytes != NULL;
}

static int
is_safetensors(const struct dirent *entry)
{
	size_t		length = strlen(entry->d_name);

	return length > 12 && strcmp(entry->d_name + length - 12, ".safetensors") == 0;
}

static bool
add_file(TensorStore *store, MappedFile **last, const char *directory, const char *name,
		 Status *status)
{
	size_t		length = strlen(directory) + strlen(name) + 2;
	MappedFile *file = arena_take(store->arena, sizeof(MappedFile));
	char	   *path = arena_take(store->arena, length);

	if (file == NULL || path == NULL)
		return status_out_of_memory(status, length);
	snprintf(path, length, "%s/%s", directory, name);
	file->path = path;
	if (*last == NULL)
		store->files = file;
	else
		(*last)->next = file;
	*last = file;
	return map_file(file, status) && read_header(store, file, status);
}

static int
compare_names(const void *a, const void *b)
{
	return strcmp(((const StoredTensor *) a)->name, ((const StoredTensor *) b)->name);
}

static bool
sort_tensors(TensorStore *store, Status *status)
{
	if (store->count > 0)
		qsort(store->tensors, (size_t) store->count, sizeof(StoredTensor), compare_names);
	for (int i = 1; i < store->count; i++)
		if (strcmp(store->tensors[i - 1].name, store->tensors[i].name) == 0)
		{
			status_set(status, STATUS_INVALID_MODEL, "tensor \"%s\" is stored twice",
					   store->tensors[i].name);
			return status_detail(status, "The files are \"%s\" and \"%s\".",
								 store->tensors[i - 1].file, store->tensors[i].file);
		}
	return true;
}

static bool
file_exists(const char *directory, const char *name)
{
	char		path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	return access(path, F_OK) == 0;
}

/* Add all *.safetensors files of the directory. */
static bool
add_all_files(TensorStore *store, const char *directory, Status *status)
{
	struct dirent **names = NULL;
	MappedFile *last = NULL;
	int			files = scandir(directory, &names, is_safetensors, alphasort);
	bool		good = true;

	if (files < 0)
		return status_set(status, STATUS_INVALID_MODEL, "could not open directory \"%s\": %s",
						  directory, strerror(errno));
	if (files == 0 || files > MAX_FILES)
		good = status_set(status, STATUS_INVALID_MODEL,
						  "directory \"%s\" holds %s*.safetensors file", directory,
						  files == 0 ? "no " : "too many ");
	for (int i = 0; i < files; i++)
	{
		good = good && add_file(store, &last, directory, names[i]->d_name, status);
		free(names[i]);
	}
	free(names);
	return good;
}

TensorStore *
tensor_store_open(const char *directory, const char *single, Arena *arena, Status *status)
{
	TensorStore *store = arena_take(arena, sizeof(TensorStore));
	MappedFile *last = NULL;
	bool		good;

	if (store == NULL)
	{
		status_out_of_memory(status, sizeof(TensorStore));
		return NULL;
	}
	store->arena = arena;
	if (file_exists(directory, single))
		good = add_file(store, &last, directory, single, status);
	else
		good = add_all_files(store, directory, status);
	if (good && sort_tensors(store, status))
		return store;
	tensor_store_close(store);
	return NULL;
}

TensorStore *
tensor_store_open_bytes(const void *bytes, size_t size, const char *name, Arena *arena,
						Status *status)
{
	TensorStore *store = arena_take(arena, sizeof(TensorStore));
	MappedFile *file = arena_take(arena, sizeof(MappedFile));

	if (store == NULL || file == NULL)
	{
		status_out_of_memory(status, sizeof(TensorStore));
		return NULL;
	}
	store->arena = arena;
	store->files = file;
	file->path = name;
	file->bytes = (uint8_t *) bytes;	/* only read */
	file->size = size;
	file->borrowed = true;
	return read_header(store, file, status) && sort_tensors(store, status) ? store : NULL;
}

void
tensor_store_close(TensorStore *store)
{
	if (store == NULL)
		return;
	for (MappedFile *file = store->files; file != NULL; file = file->next)
		if (file->bytes != NULL && !file->borrowed)
			munmap(file->bytes, file->size);
	store->files = NULL;
	store->count = 0;
}

StoredTensor *
tensor_store_find(TensorStore *store, const char *name)
{
	StoredTensor key = {.name = name};
	StoredTensor *found = NULL;

	if (store->count > 0)
		found = bsearch(&key, store->tensors, (size_t) store->count, sizeof(StoredTensor),
						compare_names);
	if (found != NULL)
		found->used = true;
	return found;
}

const StoredTensor *
tensor_store_unused(const TensorStore *store)
{
	for (int i = 0; i < store->count; i++)
		if (!store->tensors[i].used)
			return &store->tensors[i];
	return NULL;
}

int
tensor_store_count(const TensorStore *store)
{
	return store->count;
}

StoredTensor *
tensor_store_at(const TensorStore *store, int i)
{
	return &store->tensors[i];
}

void
tensor_release_pages(const StoredTensor *tensor)
{
	uintptr_t	page = (uintptr_t) sysconf(_SC_PAGESIZE);
	uintptr_t	begin = (uintptr_t) tensor->data / page * page;
	uintptr_t	end = (uintptr_t) tensor->data + tensor->bytes;

	/* The neighbours' part of the first and the last page comes back when it is read. */
	madvise((void *) begin, end - begin, MADV_DONTNEED);
}

size_t
tensor_store_bytes(const TensorStore *store)
{
	size_t		bytes = 0;

	for (int i = 0; i < store->count; i++)
		bytes += store->tensors[i].bytes;
	return bytes;
}

void
tensor_store_digest(const TensorStore *store, DigestState *digest)
{
	for (const MappedFile *file = store->files; file != NULL; file = file->next)
	{
		uint64_t	size = file->size;

		digest_add(digest, &size, sizeof(size));
		digest_add(digest, file->bytes, 8 + (size_t) file->header);
	}
	for (int i = 0; i < store->count; i++)
	{
		const StoredTensor *tensor = &store->tensors[i];
		size_t		sample = tensor->bytes < DIGEST_SAMPLE ? tensor->bytes : DIGEST_SAMPLE;

		digest_add(digest, tensor->data, sample);
		digest_add(digest, (const char *) tensor->data + tensor->bytes - sample, sample);
		tensor_release_pages(tensor);	/* the system brings more than was read */
	}
}
