"""The 200 species of CUB-200-2011, and which of them text-to-image work keeps for the test."""

# In the order of their numbers; the folder of number 1 is "001.Black_footed_Albatross".
_NAMES = """Black footed Albatross, Laysan Albatross, Sooty Albatross, Groove billed Ani, Crested Auklet,
Least Auklet, Parakeet Auklet, Rhinoceros Auklet, Brewer Blackbird, Red winged Blackbird, Rusty Blackbird,
Yellow headed Blackbird, Bobolink, Indigo Bunting, Lazuli Bunting, Painted Bunting, Cardinal,
Spotted Catbird, Gray Catbird, Yellow breasted Chat, Eastern Towhee, Chuck will Widow, Brandt Cormorant,
Red faced Cormorant, Pelagic Cormorant, Bronzed Cowbird, Shiny Cowbird, Brown Creeper, American Crow,
Fish Crow, Black billed Cuckoo, Mangrove Cuckoo, Yellow billed Cuckoo, Gray crowned Rosy Finch,
Purple Finch, Northern Flicker, Acadian Flycatcher, Great Crested Flycatcher, Least Flycatcher,
Olive sided Flycatcher, Scissor tailed Flycatcher, Vermilion Flycatcher, Yellow bellied Flycatcher,
Frigatebird, Northern Fulmar, Gadwall, American Goldfinch, European Goldfinch, Boat tailed Grackle,
Eared Grebe, Horned Grebe, Pied billed Grebe, Western Grebe, Blue Grosbeak, Evening Grosbeak,
Pine Grosbeak, Rose breasted Grosbeak, Pigeon Guillemot, California Gull, Glaucous winged Gull,
Heermann Gull, Herring Gull, Ivory Gull, Ring billed Gull, Slaty backed Gull, Western Gull,
Anna Hummingbird, Ruby throated Hummingbird, Rufous Hummingbird, Green Violetear, Long tailed Jaeger,
Pomarine Jaeger, Blue Jay, Florida Jay, Green Jay, Dark eyed Junco, Tropical Kingbird, Gray Kingbird,
Belted Kingfisher, Green Kingfisher, Pied Kingfisher, Ringed Kingfisher, White breasted Kingfisher,
Red legged Kittiwake, Horned Lark, Pacific Loon, Mallard, Western Meadowlark, Hooded Merganser,
Red breasted Merganser, Mockingbird, Nighthawk, Clark Nutcracker, White breasted Nuthatch,
Baltimore Oriole, Hooded Oriole, Orchard Oriole, Scott Oriole, Ovenbird, Brown Pelican, White Pelican,
Western Wood Pewee, Sayornis, American Pipit, Whip poor Will, Horned Puffin, Common Raven,
White necked Raven, American Redstart, Geococcyx, Loggerhead Shrike, Great Grey Shrike, Baird Sparrow,
Black throated Sparrow, Brewer Sparrow, Chipping Sparrow, Clay colored Sparrow, House Sparrow,
Field Sparrow, Fox Sparrow, Grasshopper Sparrow, Harris Sparrow, Henslow Sparrow, Le Conte Sparrow,
Lincoln Sparrow, Nelson Sharp tailed Sparrow, Savannah Sparrow, Seaside Sparrow, Song Sparrow,
Tree Sparrow, Vesper Sparrow, White crowned Sparrow, White throated Sparrow, Cape Glossy Starling,
Bank Swallow, Barn Swallow, Cliff Swallow, Tree Swallow, Scarlet Tanager, Summer Tanager, Artic Tern,
Black Tern, Caspian Tern, Common Tern, Elegant Tern, Forsters Tern, Least Tern, Green tailed Towhee,
Brown Thrasher, Sage Thrasher, Black capped Vireo, Blue headed Vireo, Philadelphia Vireo, Red eyed Vireo,
Warbling Vireo, White eyed Vireo, Yellow throated Vireo, Bay breasted Warbler, Black and white Warbler,
Black throated Blue Warbler, Blue winged Warbler, Canada Warbler, Cape May Warbler, Cerulean Warbler,
Chestnut sided Warbler, Golden winged Warbler, Hooded Warbler, Kentucky Warbler, Magnolia Warbler,
Mourning Warbler, Myrtle Warbler, Nashville Warbler, Orange crowned Warbler, Palm Warbler, Pine Warbler,
Prairie Warbler, Prothonotary Warbler, Swainson Warbler, Tennessee Warbler, Wilson Warbler,
Worm eating Warbler, Yellow Warbler, Northern Waterthrush, Louisiana Waterthrush, Bohemian Waxwing,
Cedar Waxwing, American Three toed Woodpecker, Pileated Woodpecker, Red bellied Woodpecker,
Red cockaded Woodpecker, Red headed Woodpecker, Downy Woodpecker, Bewick Wren, Cactus Wren, Carolina Wren,
House Wren, Marsh Wren, Rock Wren, Winter Wren, Common Yellowthroat"""
SPECIES = tuple(" ".join(name.split()) for name in _NAMES.split(","))

# Numbers of the 50 test species of Akata et al. 2015, which Reed et al. 2016 and text-to-image work after
# them use. They have 2,933 of the 11,788 images. Xian et al. 2017 chose other 50 for zero-shot learning.
TEST_SPECIES = frozenset(
    (1, 4, 6, 8, 9, 14, 23, 29, 31, 33, 34, 35, 36, 37, 38, 43, 49, 51, 53, 66, 72, 79, 83, 84, 86)
    + (91, 95, 96, 98, 101, 102, 103, 112, 114, 119, 121, 130, 135, 138, 147, 156, 163, 165, 166)
    + (180, 183, 185, 186, 187, 197)
)
