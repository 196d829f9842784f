/*
 * fuzz_safetensors.c - model files with damaged headers must be refused or taken, and never more.
 *
 *	fuzz_safetensors COUNT [SEED [NUMBER]]
 *
 * A turn writes a small safetensors file with a damaged header into a directory of its
 * own and opens it. Each byte of the file's data is its own offset, so that a
 * tensor which was taken shows by its bytes whether it lies where its entry says and inside
 * the file.
 */
#include <unistd.h>

#include "fuzz.h"
#include "safetensors.h"

#define FILE_NAME "model.safetensors"
#define DATA_SIZE 60

static const char header_text[] =
	"{\"__metadata__\":{\"format\":\"pt\"},"
	"\"a.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
	"\"module.lang_encoder.b.decoder_layer.c\":"
	"{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[24,32]},"
	"\"base_model.model.d.default.\xC3\xA9\":"
	"{\"dtype\":\"F16\",\"shape\":[1,2,2,1],\"data_offsets\":[32,40]},"
	"\"e\":{\"dtype\":\"F32\",\"shape\":[5],\"data_offsets\":[40,60]}}";

static char directory[] = "/tmp/mmgpt-fuzz-XXXXXX";
static char path[sizeof(directory) + sizeof(FILE_NAME)];

/* Write length of the header (as said), header and data; end the program if that fails. */
static void
write_file(const FuzzText *header, uint64_t said, size_t data_size)
{
	FILE	   *file = fopen(path, "wb");
	uint8_t		data[DATA_SIZE];

	for (int i = 0; i < DATA_SIZE; i++)
		data[i] = (uint8_t) i;
	if (file == NULL || fwrite(&said, sizeof(said), 1, file) != 1 ||
		fwrite(header->bytes, 1, header->length, file) != header->length ||
		fwrite(data, 1, data_size, file) != data_size || fclose(file) != 0)
	{
		fprintf(stderr, "fuzz_safetensors: could not write \"%s\"\n", path);
		exit(2);
	}
}

/* Check a tensor's sizes, and its bytes when the data begins where the file says. */
static bool
check_tensor(const StoredTensor *tensor, bool data_known)
{
	const uint8_t *bytes = tensor->data;
	uint64_t	size = data_type_size(tensor->type);
	uint32_t	sum = 0;

	if (tensor->dimensions < 0 || tensor->dimensions > SAFETENSORS_MAX_DIMENSIONS)
		return fuzz_broken("the number of dimensions");
	for (int i = 0; i < tensor->dimensions; i++)
		size *= (uint64_t) tensor->shape[i];
	if (size != tensor->bytes || size == 0)
		return fuzz_broken("the bytes of a shape");
	for (size_t i = 0; i < tensor->bytes; i++)
		sum += (uint32_t) (uint8_t) (bytes[i] - bytes[0] - i);
	if (data_known && (sum != 0 || bytes[0] + tensor->bytes > DATA_SIZE))
		return fuzz_broken("a tensor outside of its file");
	return true;
}

/* Check all tensors of a store, and what looks for them. */
static bool
check_store(TensorStore *store, bool data_known)
{
	uint8_t		result[DIGEST_SIZE];
	DigestState digest;
	size_t		bytes = 0;

	for (int i = 0; i < tensor_store_count(store); i++)
	{
		StoredTensor *tensor = tensor_store_at(store, i);

		if (!check_tensor(tensor, data_known))
			return false;
		if (tensor_store_find(store, tensor->name) != tensor)
			return fuzz_broken("a tensor that is not found by its name");
		bytes += tensor->bytes;
	}
	digest_begin(&digest);
	tensor_store_digest(store, &digest);
	digest_end(&digest, result);
	if (tensor_store_unused(store) != NULL || bytes != tensor_store_bytes(store))
		return fuzz_broken("the tensors of a store");
	return true;
}

/* Write a damaged file and open it. */
static bool
run_turn(uint64_t *state)
{
	FuzzText	header = fuzz_text(header_text, strlen(header_text));
	size_t		data_size = fuzz_draw(state, 8) == 0 ? fuzz_draw(state, DATA_SIZE) : DATA_SIZE;
	Arena	   *arena = arena_create();
	TensorStore *store;
	Status		status;
	uint64_t	said;
	bool		good;

	fuzz_damage(&header, state);
	said = header.length;
	if (fuzz_draw(state, 8) == 0)
		said = fuzz_draw(state, 2) == 0 ? fuzz_draw(state, header.length + 100)
										: UINT64_MAX - fuzz_draw(state, 16);
	write_file(&header, said, data_size);
	status_clear(&status);
	store = tensor_store_open(directory, FILE_NAME, arena, &status);
	if (store != NULL)
		good = check_store(store, said == header.length);
	else
		good = status.code == STATUS_INVALID_MODEL && fuzz_says_why(&status);
	tensor_store_close(store);
	arena_free(arena);
	free(header.bytes);
	return good;
}

int
main(int argc, char **argv)
{
	int			result;

	if (mkdtemp(directory) == NULL)
	{
		fprintf(stderr, "fuzz_safetensors: could not make \"%s\"\n", directory);
		return 2;
	}
	snprintf(path, sizeof(path), "%s/%s", directory, FILE_NAME);
	result = fuzz_run(argc, argv, run_turn);
	unlink(path);
	rmdir(directory);
	return result;
}
